"""Nodes: reach a machine, prepare it, start its agent, and talk to it."""
