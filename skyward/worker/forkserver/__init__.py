"""The process that slots are forked from, and the agent's client for it."""
