"""Payloads: values to bytes and back, at both ends."""
