"""The user's own code, as nodes get it."""
