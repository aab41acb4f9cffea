"""What ssh's configuration says about one host: ~/.ssh/config, /etc/ssh/ssh_config, and everything they include.

If there is an ssh command, it is asked (``ssh -G``), so that every keyword means what it means to ssh. Otherwise, and
if no file is to be read, asyncssh's parser is used, which knows fewer keywords. Everything here blocks: it reads files,
starts a program, and may resolve names. What the keywords mean for a login is decided in ssh_login.py.
"""

from __future__ import annotations

import functools
import getpass
import hashlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import asyncssh

__all__ = ["SSHSettings", "ask_ssh", "expand", "expand_path", "parse_answer", "read_settings"]

_LIMIT = 15.0  # seconds for ssh's answer: it may have to canonicalize names, and `Match exec` runs commands
_SYSTEM = Path("/etc/ssh/ssh_config")
_LISTS = frozenset({"userknownhostsfile", "globalknownhostsfile"})  # keywords with several values in a line
_WORDS = (
    "AddressFamily", "BindAddress", "CASignatureAlgorithms", "CertificateFile", "Ciphers", "ConnectTimeout",
    "ForwardAgent", "GlobalKnownHostsFile", "HostKeyAlgorithms", "HostKeyAlias", "IdentitiesOnly", "IdentityAgent",
    "IdentityFile", "KexAlgorithms", "MACs", "ProxyCommand", "ProxyJump", "SendEnv", "SetEnv", "TCPKeepAlive",
    "UserKnownHostsFile",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SSHSettings:
    """What is configured for one host, without ssh's own defaults.

    Attributes
    ----------
    host
        The host as given.
    name, port, user
        Where to connect, and as whom.
    words
        Values by keyword, in lower case; tokens such as ``%h`` and ``~`` are not expanded.
    """

    host: str
    name: str
    port: int
    user: str
    words: Mapping[str, tuple[str, ...]]

    def all(self, word: str) -> tuple[str, ...] | None:
        """Return all values of a keyword; None if it is not configured."""
        return self.words.get(word)

    def get(self, word: str) -> str | None:
        """Return the first value of a keyword; None if it is not configured, or is "none"."""
        values = self.words.get(word)
        return None if not values or values[0].lower() == "none" else values[0]

    @property
    def tokens(self) -> dict[str, str]:
        """The values of the tokens of ssh_config(5), except those that only some keywords have."""
        local = socket.gethostname()
        jump = self.get("proxyjump") or ""
        place = f"{local}{self.name}{self.port}{self.user}{jump}"
        return {
            "%": "%",
            "C": hashlib.sha1(place.encode(), usedforsecurity=False).hexdigest(),
            "L": local.partition(".")[0],
            "d": str(Path.home()),
            "h": self.name,
            "i": str(os.getuid()),
            "j": jump,
            "k": self.get("hostkeyalias") or self.host,
            "l": local,
            "n": self.host,
            "p": str(self.port),
            "r": self.user,
            "u": getpass.getuser(),
        }


def read_settings(host: str, port: int | None, user: str | None, files: Sequence[str] | None) -> SSHSettings:
    """Read the configuration for a host; blocks.

    Parameters
    ----------
    host, port, user
        As given; None: as configured.
    files
        Configuration files to use instead of the user's and the system's; an empty list for none.

    Raises
    ------
    ValueError
        The configuration can't be read; the text is ssh's own if ssh was asked.
    """
    program = shutil.which("ssh")
    if files is not None and not files:
        return _parse_by_ourselves(host, port, user, [])
    if program is None or (defaults := _defaults(program)) is None:
        return _parse_by_ourselves(host, port, user, files)
    with _one_file(files) as option:
        asked = [*option, *_asked(port, user), "-o", "RemoteCommand=none", "--", host, "true"]
        try:
            answer = ask_ssh(program, *asked)
        except ValueError as error:
            # `Host *` with `ProxyJump bastion` is a common mistake, and fails for the bastion itself.
            try:
                answer = ask_ssh(program, "-o", "ProxyJump=none", *asked)
            except ValueError:
                raise error from None
    words = {word: values for word, values in answer.items() if defaults.get(word) != values}
    name, asked_port, asked_user = (answer.get(word, ("",))[0] for word in ("hostname", "port", "user"))
    return SSHSettings(
        host, name or host, int(asked_port or 22), asked_user or getpass.getuser(), MappingProxyType(words)
    )


def _asked(port: int | None, user: str | None) -> list[str]:
    return [*([] if port is None else ["-p", str(port)]), *([] if user is None else ["-l", user])]


def ask_ssh(program: str, *arguments: str) -> dict[str, tuple[str, ...]]:
    """Run ``ssh -G`` and return each keyword with its values.

    Raises
    ------
    ValueError
        It rejects the configuration, or does not answer in time.
    """
    try:
        done = subprocess.run(
            [program, "-G", *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"`ssh -G` did not answer within {_LIMIT:g} s; does a `Match exec` or a name server hang?"
        ) from error
    if done.returncode != 0:
        said = [line.strip() for line in os.fsdecode(done.stderr).splitlines() if line.strip()]
        raise ValueError("; ".join(said[-4:]) or f"`ssh -G` failed with exit status {done.returncode}")
    return parse_answer(os.fsdecode(done.stdout))


def parse_answer(text: str) -> dict[str, tuple[str, ...]]:
    """Parse the output of ``ssh -G``: lines of a keyword and a value, with several lines for some keywords."""
    words: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        word, _, value = line.partition(" ")
        values = _split(value) if word in _LISTS else (value,)
        words[word.lower()] = words.get(word.lower(), ()) + values
    return words


def _split(value: str) -> tuple[str, ...]:
    """Split several paths of one line, which ssh does not quote: a space belongs to a path if such a file exists."""
    parts, found = value.split(" "), []
    while parts:
        count = next((n for n in range(len(parts), 1, -1) if Path(" ".join(parts[:n])).exists()), 1)
        found.append(" ".join(parts[:count]))
        del parts[:count]
    return tuple(path for path in found if path)


@functools.cache
def _defaults(program: str) -> dict[str, tuple[str, ...]] | None:
    """Return ssh's answer for a host without configuration; None if ssh can't be asked (before OpenSSH 6.8)."""
    try:
        return ask_ssh(program, "-F", "none", "--", "localhost")
    except ValueError:
        return None


class _one_file:  # noqa: N801 - a context manager, used like a function
    """The arguments that make ssh read these files: it takes one, and looks for its own in the home of passwd(5)."""

    def __init__(self, files: Sequence[str] | None) -> None:
        self._files = files
        self._draft: str | None = None

    def __enter__(self) -> list[str]:
        files = self._files
        if files is None:
            if str(Path.home()) == pwd.getpwuid(os.getuid()).pw_dir:
                return []
            files = [str(Path("~/.ssh/config").expanduser()), str(_SYSTEM)]
        if len(files) == 1:
            return ["-F", files[0]]
        number, self._draft = tempfile.mkstemp(prefix="skyward-ssh-")
        with os.fdopen(number, "w") as file:
            file.writelines(f'Include "{path}"\n' for path in files)
        return ["-F", self._draft]

    def __exit__(self, *_: object) -> None:
        if self._draft is not None:
            Path(self._draft).unlink(missing_ok=True)


def _parse_by_ourselves(host: str, port: int | None, user: str | None, files: Sequence[str] | None) -> SSHSettings:
    if files is None:
        files = [str(path) for path in (Path("~/.ssh/config").expanduser(), _SYSTEM) if os.access(path, os.R_OK)]
    try:
        options = asyncssh.SSHClientConnectionOptions(
            host=host,
            port=port if port is not None else (),
            username=user if user is not None else (),
            config=list(files),
            client_keys=None,
            known_hosts=asyncssh.SSHKnownHosts(),
            x509_trusted_certs=None,
            tunnel=None,
            agent_path=None,
        )
    except (asyncssh.Error, ValueError, KeyError) as error:
        more = "" if not files else " (install OpenSSH's client, whose ssh command understands all keywords)"
        raise ValueError(f"{error}{more}") from error
    get, words = options.config.get, {}
    for word in _WORDS:
        value = get(word)
        if value is not None:
            words[word.lower()] = tuple(map(_spelled, value)) if isinstance(value, list) else (_spelled(value),)
    return SSHSettings(host, options.host, options.port, options.username or getpass.getuser(), MappingProxyType(words))


def _spelled(value: object) -> str:
    """Spell a value as ssh's answer does."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    families = {socket.AF_INET: "inet", socket.AF_INET6: "inet6", socket.AF_UNSPEC: "any"}
    if isinstance(value, socket.AddressFamily):
        return families[value]
    return str(value)


# --- tokens ---------------------------------------------------------------------------------------------------------


def expand(text: str, tokens: Mapping[str, str], *, environment: bool = True) -> str:
    """Expand tokens such as ``%h``, and ``${NAME}``.

    Parameters
    ----------
    text
        What to expand.
    tokens
        The token's values, by letter.
    environment
        Whether to expand environment variables, too.

    Raises
    ------
    ValueError
        There is no such token or variable.
    """

    def value(match: re.Match[str]) -> str:
        token, name = match.groups()
        if token is not None:
            if token not in tokens:
                raise ValueError(f"{text!r}: the token %{token} is not supported here")
            return tokens[token]
        if name not in os.environ:
            raise ValueError(f"{text!r}: {name} is not set in the environment")
        return os.environ[name]

    return re.sub(r"%(.)|\$\{(\w+)\}" if environment else r"%(.)()", value, text)


def expand_path(path: str, tokens: Mapping[str, str]) -> str:
    """Expand a path; ``~`` is the home of $HOME, as elsewhere in Python."""
    return str(Path(expand(path, tokens)).expanduser())
