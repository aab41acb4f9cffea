"""Clouds on this machine: the APIs that vendors have, whose machines are hosts of the lab.

Each cloud is an HTTP server in a thread (cloud.py), with a meter of what it would bill, and faults on a switch. When an
instance is created it boots a host and runs what it was sent (machines.py). The vendors' own clients are the proof that
they are faithful.
"""

from .cloud import Cloud, Request
from .faults import Faults
from .machines import Boot, Machines
from .meter import Meter

__all__ = ["Boot", "Cloud", "Faults", "Machines", "Meter", "Request"]
