"""Reads the results of untrusted machines as data, so that the owner of such a machine can't run code here."""
