"""Debian's real cloud-init inside a host of the lab: what a cloud's machine does with its user data at its first boot.

The stages run as on a machine with systemd, one program after another, with an offline data source. sshd is up all the
time here, so the host must be cut off until cloud-init has set its keys, which is where sshd starts on a real machine.
Modules that would need a network, a boot loader or an init system are left out (packages, disks, power state).
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.lab import Host, LabError, eventually
from tests.lab.seed import HOST_KEY, make_key

from .faults import Faults
from .machines import Boot, Machines

__all__ = ["boot_image", "change_host_key", "reload_sshd", "run_cloud_init", "switch_on"]

_LOG = "var/log/cloud-init-output.log"
_LIMIT = 60.0
_FOREVER = 1e6

_LOGGING = """\
[loggers]
keys=root
[handlers]
keys=file
[formatters]
keys=line
[formatter_line]
format=%(asctime)s - %(filename)s[%(levelname)s]: %(message)s
[logger_root]
level=DEBUG
handlers=file
[handler_file]
class=FileHandler
level=DEBUG
formatter=line
args=("/var/log/cloud-init.log", "a", "UTF-8")
"""
_BASE: dict[str, Any] = {
    "datasource_list": ["NoCloud"],
    "datasource": {"NoCloud": {"fs_label": None}},  # look at no disks: they are this machine's
    "network": {"config": "disabled"},
    "users": ["default"],
    "preserve_hostname": False,
    "ssh_genkeytypes": ["ed25519"],  # an RSA key would take longer than all the rest
    "ssh_quiet_keygen": True,
    "log_cfgs": [_LOGGING],
    "cloud_init_modules": ["bootcmd", "write-files", "set_hostname", "users-groups", "ssh"],
    "cloud_final_modules": [
        "runcmd",  # which only writes the script; a stage of its own for it would be half a second of imports
        "write-files-deferred",
        "scripts-per-once",
        "scripts-per-boot",
        "scripts-per-instance",
        "scripts-user",
        "final-message",
    ],
}


def switch_on(host: Host) -> None:
    """Let the host be reached."""
    host.mend()


def run_cloud_init(
    host: Host,
    user_data: str,
    *,
    default_user: str,
    public_keys: Sequence[str] = (),
    hostname: str = "",
    ready: Callable[[Host], None] = switch_on,
) -> list[str]:
    """Run user data at a host's first boot; returns the errors that cloud-init noted.

    What fails in the user data is the user's own affair, as on a real machine: the host comes up all the same.

    Parameters
    ----------
    host
        Started with ``system_python=True``, with its line cut, and with `default_user` among its users (or root).
    default_user
        Whom the image is made for; root may log in only if it is root.
    public_keys
        What the cloud's metadata hold for the default user.
    hostname
        The machine's name; without one it keeps the lab's.
    ready
        Called once sshd shows the machine's keys, before runcmd and scripts run: from here on a real machine can be
        logged into.
    """
    assert host.options.system_python, "cloud-init needs a host with system_python=True"
    _plant(host, user_data, default_user, public_keys, hostname or host.name)
    _stage(host, "init")
    # Newer sshd default to all three kinds of keys, of which cloud-init may have left any.
    config = host.root / "etc/ssh/sshd_config"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("HostKey ")))
    reload_sshd(host)
    ready(host)
    _stage(host, "modules", "--mode=final")
    try:
        result = json.loads((host.root / "run/cloud-init/result.json").read_text())
    except OSError as error:
        raise LabError(f"cloud-init did not end on {host.name}:\n{_log(host)}") from error
    return list(result["v1"]["errors"])


def boot_image(
    machines: Machines,
    faults: Faults,
    user_data: str,
    *,
    default_user: str = "root",
    public_keys: Sequence[str] = (),
    hostname: str = "",
    on_power: Callable[[], None] = lambda: None,
) -> Boot:
    """Boot a machine with an image that has cloud-init, with the faults that it may have.

    `on_power` is called when it is switched on, which is what clouds call running: cloud-init has not begun then.
    """
    slow, never = faults.take("slow_boot"), faults.take("never_boots")
    silent, wrong_key = faults.take("never_answers") is not None, faults.take("wrong_host_key") is not None

    def ready(host: Host) -> None:
        if wrong_key:
            change_host_key(host)
        if not silent:
            host.mend()

    def set_up(host: Host) -> None:
        on_power()
        run_cloud_init(
            host, user_data, default_user=default_user, public_keys=public_keys, hostname=hostname, ready=ready
        )

    def on_up(boot: Boot) -> None:
        if machines.lab is None:
            on_power()

    return machines.boot(
        set_up,
        delay=_FOREVER if never is not None else float((slow or {}).get("seconds", 0.0)),
        silent=silent,
        on_up=on_up,
        system_python=True,
        users=() if default_user == "root" else (default_user,),
    )


def change_host_key(host: Host) -> None:
    """Give the host another key than it was sent, as an impostor at its address would have."""
    for old in (host.root / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    make_key(host.root / HOST_KEY, host.name)
    reload_sshd(host)


def reload_sshd(host: Host) -> None:
    """Let sshd take the keys in the host's /etc/ssh, and wait until it shows them; its line may be cut."""
    keys = [path.read_text().split() for path in (host.root / "etc/ssh").glob("ssh_host_*_key.pub")]
    # The kind comes first in the file; the host's comment is not part of what sshd shows.
    wanted = {" ".join(key[:2]) for key in keys}
    if not wanted:
        raise LabError(f"{host.name} has no host keys left")
    host.run("kill", "-HUP", (host.root / "run/sshd.pid").read_text().strip(), check=True)

    def shown() -> bool:
        kinds = ",".join(sorted(key[0].removeprefix("ssh-").partition("-")[0] for key in keys))
        lines = host.run("ssh-keyscan", "-t", kinds, "-T", "1", "127.0.0.1").stdout.splitlines()
        return wanted <= {" ".join(line.split()[1:3]) for line in lines}

    eventually(shown, what=f"the host keys of {host.name} from cloud-init")
    host.public_key = next(" ".join(key) for key in sorted(keys, key=lambda key: key[0] != "ssh-ed25519"))


def _plant(host: Host, user_data: str, default_user: str, public_keys: Sequence[str], hostname: str) -> None:
    """Configuration and data source; nothing of what this machine itself may have had of them."""
    root = host.root
    host.run("rm", "-rf", "/etc/cloud", "/var/lib/cloud", "/run/cloud-init", "/" + _LOG, check=True)
    user = {"name": default_user, "lock_passwd": False, "shell": host.options.shell}
    if default_user != "root":
        user |= {"sudo": ["ALL=(ALL) NOPASSWD:ALL"]}
    config = {**_BASE, "disable_root": default_user != "root"}
    config["system_info"] = {"distro": "debian", "default_user": user, "paths": {"cloud_dir": "/var/lib/cloud/"}}
    seed = root / "var/lib/cloud/seed/nocloud"
    seed.mkdir(parents=True)
    (root / "etc/cloud").mkdir()
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{host.address} {hostname}\n")  # sudo looks itself up
    _write(root / "etc/cloud/cloud.cfg", json.dumps(config))  # YAML takes JSON
    meta = {"instance-id": host.name, "local-hostname": hostname, "dsmode": "net", "public-keys": list(public_keys)}
    _write(seed / "meta-data", json.dumps(meta))
    _write(seed / "user-data", user_data)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def _stage(host: Host, *arguments: str) -> None:
    """Run one stage; its output goes to the log, as what it starts in the background may outlive it."""
    program = shlex.join(["/usr/bin/cloud-init", *arguments])
    try:
        host.run("/bin/sh", "-c", f"exec {program} >>/{_LOG} 2>&1 </dev/null", timeout=_LIMIT)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"cloud-init hangs on {host.name}:\n{_log(host)}") from error


def _log(host: Host) -> str:
    log = host.root / _LOG
    return log.read_text(errors="replace") if log.exists() else "(it wrote nothing)"
