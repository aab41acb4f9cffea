"""What a rented machine runs at first boot: installs host and login key, and terminates itself when orphaned. Pure.

In two forms: user data for cloud-init, and a shell script for clouds that run one.
"""

from __future__ import annotations

import base64
import json
import math
import shlex

from skyward.core.protocol.messages import HEARD_FILE
from skyward.core.spec import Order

__all__ = ["cloud_config", "script", "watchdog"]

_WATCHDOG = """\
#!/bin/sh
# Terminates this machine after {limit} s without contact to its owner. Each contact touches {file}.{why}
file={file}
: >>"$file"
chmod 666 "$file"
idle=0
last=
# The file's time is compared only with itself: the clock may jump when it is first set.
while sleep {step}; do
    now=$(stat -c %Y "$file" 2>/dev/null || echo gone)
    if [ "$now" = "$last" ]; then idle=$((idle + {step})); else idle=0; fi
    last=$now
    if [ "$idle" -ge {limit} ]{or_spent}; then {end}; fi
done
"""

_BELIEVED = 14 * 24 * 3600  # seconds; a clock that is further past the deadline is taken to be wrong

_PLACE = "/usr/local/sbin/skyward-watchdog"

# Detached from whatever runs the first boot's scripts, whose end it must survive.
_START = (
    "if [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; "
    f"then systemd-run --unit=skyward-watchdog --collect {_PLACE} || setsid {_PLACE} </dev/null >/dev/null 2>&1 & "
    f"else setsid {_PLACE} </dev/null >/dev/null 2>&1 & fi"
)


def watchdog(order: Order, end: str) -> str:
    """Return the script that runs the shell command `end` if the owner is silent for the order's orphan_timeout.

    It also does so at the order's deadline, if there is one. If `end` fails, it is run again.
    """
    limit = max(1, math.ceil(order.orphan_timeout))
    why, or_spent = "", ""
    if order.deadline is not None and order.deadline < math.inf:
        deadline = math.floor(order.deadline)
        why = "\n# Also when its share of the budget is used up; a clock that is weeks past that is taken to be wrong."
        or_spent = f' || {{ date=$(date +%s); [ "$date" -ge {deadline} ] && [ "$date" -lt {deadline + _BELIEVED} ]; }}'
    return _WATCHDOG.format(
        limit=limit, step=max(1, min(15, limit // 10)), file=HEARD_FILE, end=end, why=why, or_spent=or_spent
    )


def _start_watchdog(order: Order, end: str) -> str:
    """Return a line of sh that writes the watchdog's script and starts it."""
    body = base64.b64encode(watchdog(order, end).encode()).decode()
    return f"mkdir -p {_PLACE.rpartition('/')[0]}; echo {body} | base64 -d >{_PLACE}; chmod 755 {_PLACE}; {_START}"


def cloud_config(order: Order, *, end: str | None, user: str | None = None) -> str:
    """Return user data for cloud-init.

    Parameters
    ----------
    order
        With the machine's host key and the key that may log in.
    end
        Shell command, run as root, with which the machine terminates itself; None where it can't.
    user
        Another user who may log in, in addition to the image's default one: "root" if that is the one we use.
    """
    assert order.host_key is not None
    # JSON is valid YAML, and quotes whatever a key may contain.
    config: dict[str, object] = {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": order.host_key.private, "ed25519_public": order.host_key.public},
        "ssh_authorized_keys": [order.user_key],
        "ssh_pwauth": False,
        "disable_root": user != "root",
        "package_update": False,
        "package_upgrade": False,
    }
    if user == "root":
        config["users"] = ["default", {"name": "root", "ssh_authorized_keys": [order.user_key]}]
    if end is not None:
        # bootcmd runs first; that the machine is terminated must not depend on anything later.
        config["bootcmd"] = [["sh", "-c", f"[ -e {HEARD_FILE} ] || {{ {_start_watchdog(order, end)}; }}"]]
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n"


def script(order: Order, *, end: str | None, before: str = "") -> str:
    """Return a script for root, run by sh or bash at each start, perhaps while sshd already runs with another key.

    Parameters
    ----------
    order
        As in `cloud_config`.
    end
        As in `cloud_config`.
    before
        Commands to run first.
    """
    assert order.host_key is not None
    parts = [
        "#!/bin/sh",
        before,
        "umask 077",
        "mkdir -p /etc/ssh ~/.ssh",
        "rm -f /etc/ssh/ssh_host_*key*",
        f"printf %s {shlex.quote(order.host_key.private)} >/etc/ssh/ssh_host_ed25519_key",
        f"echo {shlex.quote(order.host_key.public)} >/etc/ssh/ssh_host_ed25519_key.pub",
        # sshd ignores keys in files that others may write to, as some images have them.
        "chmod 700 ~/.ssh; touch ~/.ssh/authorized_keys; chmod 600 ~/.ssh/authorized_keys",
        f"grep -qF {shlex.quote(order.user_key)} ~/.ssh/authorized_keys || "
        # On a line of its own: the last one in the file may lack its newline.
        f"printf '\\n%s\\n' {shlex.quote(order.user_key)} >>~/.ssh/authorized_keys",
    ]
    if end is not None:
        parts.append(_start_watchdog(order, end))
    parts.append(
        "systemctl restart ssh 2>/dev/null || systemctl restart sshd 2>/dev/null || service ssh restart 2>/dev/null || "
        'kill -HUP "$(cat /run/sshd.pid)"'
    )
    return "\n".join(part for part in parts if part) + "\n"
