"""The protocol between an owner and a worker, without I/O."""
