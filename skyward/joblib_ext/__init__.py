"""joblib on a pool: the backend, the plugins' values, and the pools that join both.

Each module is imported by its own name; the public addresses are `skyward.integrations` and `skyward.plugins`.
"""
