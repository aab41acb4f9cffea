"""What a host's disk holds before it is switched on: files only, nothing is mounted or started.

`plant` fills the folder that ``boot.sh`` reads: ``settings``, the tree ``seed`` for the root
file system, the tree ``disk`` for everything a user can write, and the lists ``hidden``,
``pythons`` and ``files``.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

__all__ = ["HOST_KEY", "HostOptions", "Options", "find_python", "plant", "search_path", "uid_of"]

HOST_KEY = "etc/ssh/ssh_host_ed25519_key"

_REPOSITORY = Path(__file__).resolve().parents[2]
_RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
_PYTHON = re.compile(r"python(3(\.\d+)?)?")
_FIRST_UID = 1000

_SSHD_CONFIG = """\
HostKey /{host_key}
PidFile /run/sshd.pid
LogLevel VERBOSE
UsePAM no
UseDNS no
PermitRootLogin prohibit-password
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
AllowAgentForwarding yes
PrintMotd no
PrintLastLog no
Subsystem sftp internal-sftp
SetEnv PATH={path}
"""

_PROFILE = """\
export PATH={path}
if [ -n "$BASH_VERSION" ] && [ -f ~/.bashrc ]; then . ~/.bashrc; fi
"""


class Options(TypedDict, total=False):
    """The keywords of `Lab.up`; `HostOptions` explains each and has the defaults."""

    pythons: tuple[str, ...] | None
    system_python: bool
    shell: str
    users: tuple[str, ...]
    bashrc: str | None
    disk: str
    readonly_home: bool
    authorized: bool
    sshd: tuple[str, ...]
    files: Mapping[str, str | Path]
    delay: float
    rate: float
    fuse: bool


@dataclass(frozen=True)
class HostOptions:
    """How a host differs from a freshly rented machine with one Python."""

    pythons: tuple[str, ...] | None = None
    """Python minors it has, such as ("3.11",); None: the running one; (): none at all."""
    system_python: bool = False
    """/usr/bin/python3 is seen, as in the images of clouds; cloud-init needs it."""
    shell: str = "/bin/bash"
    """Login shell of root and of the users."""
    users: tuple[str, ...] = ()
    """Users besides root, each with a home in /home and, if authorized, the lab's key."""
    bashrc: str | None = None
    """Content of ~/.bashrc; bash runs it also for commands given to ssh. None: no such file."""
    disk: str = "50%"
    """Size of the tmpfs with /root, /home, /tmp and /var/tmp, as mount's option size= takes it."""
    readonly_home: bool = False
    """/root and /home cannot be written."""
    authorized: bool = True
    """The lab's key may log in."""
    sshd: tuple[str, ...] = ()
    """Lines of sshd's configuration that come before the others, of which the first of a kind counts. What neither
    says is OpenSSH's default: MaxStartups, MaxSessions, MaxAuthTries, LoginGraceTime."""
    files: Mapping[str, str | Path] = field(default_factory=dict)
    """Path in the host -> file or folder of this machine to show there, read-only."""
    delay: float = 0.0
    """Seconds one way that the host's cable holds each packet back (0: a plain cable)."""
    rate: float = 0.0
    """Bytes per second one way over a cable with a delay (0: no limit)."""
    fuse: bool = False
    """It has /dev/fuse, as machines have and most containers have not."""

    @property
    def minors(self) -> tuple[str, ...]:
        """The Python minors, with the default filled in."""
        return (_RUNNING,) if self.pythons is None else self.pythons


def search_path(options: HostOptions) -> str:
    """PATH of a login on a host with these options."""
    own = ["/opt/bin", *(f"/opt/python/{minor}/bin" for minor in options.minors)]
    usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return ":".join([*own, usual])


def uid_of(options: HostOptions, user: str) -> int:
    """Numeric id of a user (and of the user's group) on a host with these options."""
    return 0 if user == "root" else _FIRST_UID + options.users.index(user)


def find_python(minor: str) -> Path:
    """The base installation of a Python minor on this machine; LookupError if there is none."""
    if minor == _RUNNING:
        return Path(sys.base_prefix).resolve()
    found = Path.home().glob(f".pyenv/versions/{minor}.*/bin/python{minor}")
    by_age = sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parts[-3])])
    program = str(by_age[-1]) if by_age else f"python{minor}"
    ask = [program, "-c", "import sys; print(sys.base_prefix)"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LookupError(f"no python {minor} on this machine to lend to a host") from error
    return Path(answer.stdout.strip()).resolve()


def plant(folder: Path, name: str, place: tuple[str, str], client: str, options: HostOptions) -> None:
    """Fill `folder` for a host called `name`; place is its (address, MAC), client the lab's key."""
    address, mac = place
    folder.mkdir()
    for part in ("mem", "seed/etc/ssh", "disk/home", "disk/tmp", "disk/var/tmp"):
        (folder / part).mkdir(parents=True)
    for part in ("disk/tmp", "disk/var/tmp"):
        (folder / part).chmod(0o1777)
    _plant_etc(folder / "seed" / "etc", name, address, options)
    make_key(folder / "seed" / HOST_KEY, name)
    for user in ("root", *options.users):
        home = folder / "disk" / ("root" if user == "root" else f"home/{user}")
        _plant_home(home, uid_of(options, user), client if options.authorized else "", options)
    _write_lines(folder / "hidden", sorted(_hidden(options)))
    _write_lines(folder / "pythons", (f"{minor} {find_python(minor)}" for minor in options.minors))
    files = {inside: Path(outside).resolve(strict=True) for inside, outside in options.files.items()}
    _write_lines(folder / "files", (f"{inside}\t{outside}" for inside, outside in files.items()))
    settings = {
        "name": name,
        "address": address,
        "mac": mac,
        "disk": options.disk,
        "readonly_home": "yes" if options.readonly_home else "no",
        "fuse": "yes" if options.fuse else "no",
    }
    _write_lines(folder / "settings", (f"{k}={shlex.quote(v)}" for k, v in settings.items()))


def make_key(path: Path, comment: str) -> None:
    """Write a new ed25519 key pair without a passphrase, over an old one if there is one."""
    path.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True)


def _plant_etc(etc: Path, name: str, address: str, options: HostOptions) -> None:
    """Name, accounts and sshd's configuration; system accounts stay as they are here."""
    system = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
    accounts = [f"root:x:0:0:root:/root:{options.shell}"]
    accounts += [":".join(line) for line in system if 0 < int(line[2]) < _FIRST_UID]
    groups = Path("/etc/group").read_text().splitlines()
    groups = [line for line in groups if int(line.split(":")[2]) < _FIRST_UID]
    for user in options.users:
        uid = uid_of(options, user)
        accounts.append(f"{user}:x:{uid}:{uid}::/home/{user}:{options.shell}")
        groups.append(f"{user}:x:{uid}:")
    _write_lines(etc / "passwd", accounts)
    _write_lines(etc / "group", groups)
    # "*" is no password; "!" would mean a locked account, which sshd turns away.
    _write_lines(etc / "shadow", (f"{line.split(':')[0]}:*:19000:0:99999:7:::" for line in accounts))
    (etc / "shadow").chmod(0o600)
    _write_lines(etc / "hostname", [name])
    _write_lines(etc / "hosts", ["127.0.0.1 localhost", f"{address} {name}"])
    _write_lines(etc / "resolv.conf", [])
    config = "".join(f"{line}\n" for line in options.sshd)
    config += _SSHD_CONFIG.format(host_key=HOST_KEY, path=search_path(options))
    if _has_penalties():
        config += "PerSourcePenalties no\n"
    (etc / "ssh" / "sshd_config").write_text(config)


def _plant_home(home: Path, uid: int, key: str, options: HostOptions) -> None:
    """A home with the client's key in it, owned by its user."""
    home.mkdir(mode=0o700)
    (home / ".ssh").mkdir(mode=0o700)
    (home / ".ssh" / "authorized_keys").write_text(key)
    (home / ".profile").write_text(_PROFILE.format(path=search_path(options)))
    if options.bashrc is not None:
        (home / ".bashrc").write_text(options.bashrc + "\n")
    for path in (home, *home.rglob("*")):
        os.chown(path, uid, uid)


def _hidden(options: HostOptions) -> set[str]:
    """What must not exist in a host: this repository, other Pythons, this machine's pip settings.

    Links in the folder part are resolved, as a whiteout below a link would hide the link.
    """
    paths = {_REPOSITORY, Path(sys.prefix)} if sys.prefix != sys.base_prefix else {_REPOSITORY}
    places = ["/usr/local/bin"] if options.system_python else ["/usr/bin", "/usr/local/bin"]
    for folder in map(Path, places):
        paths |= {path for path in folder.glob("python*") if _PYTHON.fullmatch(path.name)}
    paths |= {Path("/etc/pip.conf"), Path("/etc/uv")}
    real = {path.parent.resolve() / path.name for path in paths if path.exists()}
    inside_repository = {path for path in real if _REPOSITORY in path.parents}
    return {str(path) for path in real - inside_repository}


def _has_penalties() -> bool:
    """Whether sshd (9.8 and later) locks out an address after failed logins unless told not to."""
    shown = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr
    version = re.search(r"OpenSSH_(\d+)\.(\d+)", shown)
    return version is not None and (int(version[1]), int(version[2])) >= (9, 8)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
