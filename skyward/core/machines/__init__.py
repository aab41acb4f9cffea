"""Machines: which to buy and where, what was bought, and how each is terminated."""
