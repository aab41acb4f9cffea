"""The process that slots are forked from, and the agent's side of it."""
