"""joblib on a pool: the backend, the plugins, and the pools that combine both.

Import each module by its own name; the public addresses are `skyward.integrations` and `skyward.plugins`.
"""
