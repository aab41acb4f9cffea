"""Which packages nodes need: what the driver has of what its tasks can use."""
