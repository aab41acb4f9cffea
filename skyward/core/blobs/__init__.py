"""Blobs: each large buffer goes to each node once."""
