"""Known host keys: which lines of known_hosts files are about one host, and the keys in them.

A file may have tens of thousands of lines, most of them hashed, so it is indexed once until it changes, and only lines
about the host are parsed as keys. Everything that reads files or runs a command blocks.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import functools
import hmac
import re
import shlex
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from skyward.transport.ssh_config import expand

__all__ = ["Entries", "KnownHosts", "ask_command", "lines_of", "read_revoked"]

_COMMAND_LIMIT = 15.0  # seconds
_KEPT = 8  # files whose index is cached
_MARKERS = {"": 0, "@cert-authority": 1, "@revoked": 2}


@dataclass(frozen=True, slots=True)
class _Line:
    place: str
    marker: int
    key: str


class Entries:
    """The lines of one source, indexed by the hosts that they are about. Immutable.

    Malformed lines are skipped, as ssh does.

    Parameters
    ----------
    lines
        Each line, after its location for messages.
    """

    def __init__(self, lines: Iterable[tuple[str, str]]) -> None:
        self._named: dict[str, list[_Line]] = {}
        self._patterns: list[tuple[list[str], _Line]] = []
        self._hashed: list[tuple[bytes, bytes, _Line]] = []
        for place, text in lines:
            self._add(place, text.strip())

    def __repr__(self) -> str:
        return f"<Entries {len(self._named)} names, {len(self._patterns)} patterns, {len(self._hashed)} hashed>"

    def _add(self, place: str, text: str) -> None:
        if not text or text.startswith("#"):
            return
        fields = text.split(None, 2 if text.startswith("@") else 1)
        marker = fields.pop(0) if text.startswith("@") else ""
        if marker not in _MARKERS or len(fields) != 2:
            return
        hosts, key = fields
        line = _Line(place, _MARKERS[marker], key)
        if hosts.startswith("|1|"):
            try:
                salt, digest = (base64.b64decode(part, validate=True) for part in hosts[3:].split("|"))
            except (ValueError, binascii.Error):
                return
            self._hashed.append((salt, digest, line))
        elif any(sign in hosts for sign in "*?!"):
            self._patterns.append((hosts.lower().split(","), line))
        else:
            for name in hosts.lower().split(","):
                self._named.setdefault(name, []).append(line)

    def about(self, name: str) -> list[_Line]:
        """Return the lines about a host; `name` is spelled as in the file: ``[host]:port`` unless the port is 22."""
        found = list(self._named.get(name, ()))
        found += [line for patterns, line in self._patterns if _fits(name, patterns)]
        data = name.encode()
        found += [line for salt, digest, line in self._hashed if hmac.digest(salt, data, "sha1") == digest]
        return found


def _fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches, and none that begins with an exclamation mark does."""
    fits = False
    for pattern in patterns:
        if _pattern(pattern.removeprefix("!")).fullmatch(name):
            if pattern.startswith("!"):
                return False
            fits = True
    return fits


@functools.lru_cache(1024)
def _pattern(pattern: str) -> re.Pattern[str]:
    # Only * and ? are special; brackets, used with a port, are literal.
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))


# --- files ----------------------------------------------------------------------------------------------------------


class _Cache:
    """Indexes of files, until these change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the table, and keeps a file from being indexed twice at once
        self._kept: OrderedDict[Path, tuple[tuple[int, ...], Entries]] = OrderedDict()

    def read(self, path: Path) -> Entries:
        """Return a file's entries; none if it can't be read."""
        with self._lock:
            try:
                found = path.stat()
                stamp = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
                kept = self._kept.get(path)
                if kept is not None and kept[0] == stamp:
                    self._kept.move_to_end(path)
                    return kept[1]
                text = path.read_text(errors="replace")
            except OSError:
                return Entries(())
            entries = Entries(lines_of(str(path), text))
            self._kept[path] = stamp, entries
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return entries


_cache = _Cache()


def lines_of(source: str, text: str) -> list[tuple[str, str]]:
    """Return the lines of a text, each after its location."""
    return [(f"{source} line {number}", line) for number, line in enumerate(text.splitlines(), 1)]


# --- one host -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownHosts:
    """What is known about one host's keys.

    Attributes
    ----------
    name
        The host as known_hosts spells it.
    keys, authorities, revoked
        The keys in its lines.
    places
        The locations of `keys`.
    sources
        What was searched, for messages.
    pinned
        Whether a single key was given, and nothing else is consulted.
    """

    name: str
    keys: tuple[asyncssh.SSHKey, ...] = ()
    authorities: tuple[asyncssh.SSHKey, ...] = ()
    revoked: tuple[asyncssh.SSHKey, ...] = ()
    places: tuple[str, ...] = ()
    sources: tuple[str, ...] = field(default=(), repr=False)
    pinned: bool = False

    @classmethod
    def pin(cls, name: str, line: str) -> KnownHosts:
        """Trust one key, whatever known_hosts says."""
        return cls(name, (asyncssh.import_public_key(line),), sources=("the key given for it",), pinned=True)

    @classmethod
    def look_up(
        cls, name: str, port: int, entries: Sequence[Entries], files: Sequence[str], revoked: Sequence[asyncssh.SSHKey]
    ) -> KnownHosts:
        """Search entries and files; blocks. If no line is about this port, lines without a port apply.

        Parameters
        ----------
        name, port
            The host.
        entries, files
            Where to search: indexed entries, and paths of known_hosts files.
        revoked
            Keys that are never trusted.
        """
        name = name.lower()
        spelled = name if port == 22 else f"[{name}]:{port}"
        sources = [*entries, *(_cache.read(Path(file)) for file in files)]
        lines = [line for source in sources for line in source.about(spelled)]
        if spelled != name and not any(line.marker < 2 for line in lines):
            lines = [line for source in sources for line in source.about(name)]
        found: tuple[list[tuple[str, asyncssh.SSHKey]], ...] = ([], [], [])
        for line in lines:
            try:
                found[line.marker].append((line.place, asyncssh.import_public_key(line.key)))
            except asyncssh.KeyImportError:
                continue
        keys, authorities, bad = ([key for _, key in group] for group in found)
        where = tuple(place for place, _ in found[0])
        return cls(spelled, tuple(keys), tuple(authorities), (*bad, *revoked), where, tuple(files))

    def match(self, *_: object) -> tuple[list[asyncssh.SSHKey], ...]:
        """Called by asyncssh while it connects: returns trusted keys, trusted authorities, revoked keys; no X.509."""
        return list(self.keys), list(self.authorities), list(self.revoked), [], [], [], []


def ask_command(command: str, tokens: Mapping[str, str], name: str, shown: asyncssh.SSHKey | None) -> Entries:
    """Run a KnownHostsCommand; blocks.

    Parameters
    ----------
    command
        As configured, with tokens.
    tokens
        The values of its tokens, except those that are special to this command.
    name
        The host.
    shown
        The key that the host presents, once it is known.

    Raises
    ------
    ValueError
        It fails, or does not answer in time.
    """
    kind, text, fingerprint = "NONE", "NONE", "NONE"
    if shown is not None:
        kind, text = shown.export_public_key("openssh").decode().split()[:2]
        fingerprint = shown.get_fingerprint()
    more = {"H": name, "I": "ORDER" if shown is None else "HOSTNAME", "t": kind, "K": text, "f": fingerprint}
    line = [expand(part, {**tokens, **more}) for part in shlex.split(command)]
    try:
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired, IndexError) as error:
        raise ValueError(f"KnownHostsCommand {command!r}: {error}") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise ValueError(f"KnownHostsCommand {command!r} failed with exit status {done.returncode}: {said}")
    return Entries(lines_of("KnownHostsCommand", done.stdout.decode(errors="replace")))


def read_revoked(path: str) -> list[asyncssh.SSHKey]:
    """Read the keys of a RevokedHostKeys file; blocks.

    Raises
    ------
    ValueError
        It can't be read, in which case ssh trusts no host either; or it is in the binary format of `ssh-keygen -k`.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"RevokedHostKeys: {error}") from error
    if data.startswith(b"SSHKRL\n"):
        raise ValueError(
            f"RevokedHostKeys {path} is a binary list (ssh-keygen -k), which is not supported; list the keys as text"
        )
    keys = []
    for line in data.decode(errors="replace").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                keys.append(asyncssh.import_public_key(line))
            except asyncssh.KeyImportError as error:
                raise ValueError(f"RevokedHostKeys {path}: {line[:60]!r} is not a public key: {error}") from error
    return keys
