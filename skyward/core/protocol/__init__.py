"""The protocol between an owner and an agent, without I/O."""
