"""The records between the agent and its fork server: of fixed size, over a socket pair. No behaviour."""

from __future__ import annotations

import struct

__all__ = [
    "ECHO",
    "END",
    "EXITED",
    "FAILED",
    "FILES",
    "FORKED",
    "FORK_ISOLATED",
    "FORK_SHARED",
    "HUNG",
    "KILL",
    "PEAK",
    "REPORT",
    "REQUEST",
    "SEAT",
    "SEATED",
    "TRYING",
    "UP",
]

REQUEST = struct.Struct("!BI")
"""Agent to fork server: what, slot. A fork request comes with file descriptors."""

FILES = 4
"""How many file descriptors: the slot's socket, standard output, standard error, and tickets."""

FORK_ISOLATED, FORK_SHARED, KILL, END = 1, 2, 3, 4

SEAT = 5
"""Fork server to its heir, before a fork: the slot's number for tasks."""

ECHO = 6
"""To a fork server and back: whether it is alive. It answers in order, after the requests before."""

REPORT = struct.Struct("!BIi")
"""Fork server to agent: what, slot, value."""

UP, FORKED, FAILED, EXITED = 1, 2, 3, 4  # values: nothing; pid; errno; wait status

PEAK = 7
"""Before `EXITED`, of a slot that was killed: the most memory that it has used, in units of 1,024 bytes."""

SEATED = 8
"""Before `FORKED`, of a slot that runs one task at a time: its number for tasks, from 1."""

HUNG = -1
"""In place of a wait status: how the slot ended is not known, since its heir did not answer and was killed."""

TRYING = 5
"""Heir to fork server, in place of the slot: the index of the module that it imports next."""
