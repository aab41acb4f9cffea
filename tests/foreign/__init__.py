"""Other people's tests, run on skyward from outside, with what fails and why. `make foreign` runs all of them.

runner.py runs a suite in a pytest of its own and judges what failed; each suite is a module here that is its pytest
plugin too. test_foreign.py runs a part of each.
"""
