"""joblib's own tests, run on our backend: see plugin.py. test_joblib_suite.py starts them."""
