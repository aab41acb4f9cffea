"""What a user of a cloud brings along: a key to log in with, a host key to send ahead, ssh that trusts it alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.lab.seed import make_key

__all__ = ["Login"]


class Login:
    """Two key pairs in a folder, the user data that bring them to a machine, and ssh to it."""

    def __init__(self, folder: Path) -> None:
        self.key, self.host_key = folder / "id_ed25519", folder / "host_key"
        make_key(self.key, "user")
        make_key(self.host_key, "machine")
        self.known_hosts = folder / "known_hosts"

    @property
    def public_key(self) -> str:
        """The line that lets the user in."""
        return self.key.with_suffix(".pub").read_text().strip()

    def user_data(self, **more: Any) -> str:
        """Cloud-config with both keys and whatever else is given."""
        keys = {"ed25519_private": self.host_key.read_text(), "ed25519_public": self._public_host_key()}
        return "#cloud-config\n" + json.dumps({"ssh_keys": keys, "ssh_authorized_keys": [self.public_key], **more})

    def ssh(self, address: str, *command: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        """Run a command there; the host must show the key that was sent to it."""
        self.known_hosts.write_text(f"{address} {self._public_host_key()}\n")
        options = [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=yes",
            f"UserKnownHostsFile={self.known_hosts}",
            "ConnectTimeout=2",
        ]
        flags = [word for option in options for word in ("-o", option)]
        argv = ["ssh", "-F", "none", "-i", str(self.key), *flags, f"{user}@{address}", *command]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)

    def gets_in(self, address: str, user: str = "root") -> bool:
        """Whether the machine lets the user in and is the right one."""
        return self.ssh(address, "true", user=user).returncode == 0

    def _public_host_key(self) -> str:
        return self.host_key.with_suffix(".pub").read_text().strip()
