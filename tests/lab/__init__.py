"""Real remote machines on one machine, for tests that must meet OpenSSH, kernels and cables.

Each host is a set of Linux namespaces on a bridge, with its own file system, sshd and host key::

    with Lab() as lab:
        first, second = lab.up(2)
        subprocess.run(["ssh", "-i", lab.key, f"root@{first.address}", "hostname"])

Needs root on Linux with OpenSSH and iproute2. `python -m tests.lab up 3` starts one by hand.
"""

from .host import Host, LabError
from .lab import Lab, missing
from .seed import HostOptions, Options
from .wait import eventually

__all__ = ["Host", "HostOptions", "Lab", "LabError", "Options", "eventually", "missing"]
