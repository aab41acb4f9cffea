"""Which keys are offered to a host, in which order, and the callbacks of asyncssh while it connects."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from skyward.transport.asyncssh_hooks import watch_refusals
from skyward.transport.ssh_config import SSHSettings, expand, expand_path

__all__ = ["Client", "Keys", "agent_of", "agent_words", "is_encrypted", "read_keys"]

_DEFAULTS = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk")  # in the order in which ssh tries them
_AGENT_LIMIT = 2.0  # seconds for an ssh-agent's answer that is only needed for a message


@dataclass(frozen=True)
class Keys:
    """The keys that one login can offer.

    Attributes
    ----------
    files
        The key files that were found.
    asked
        Whether the caller named them: then they are tried first, and ssh-agent's after them.
    pairs
        Those that can be used without the agent.
    publics
        The public keys of all of them, in order; the agent may hold the private keys.
    skipped
        Files that could not be used, and why.
    only
        Whether to use no keys of the agent's except these.
    agent
        Address of ssh-agent; empty for none.
    """

    files: tuple[str, ...] = ()
    asked: bool = False
    pairs: tuple[asyncssh.SSHKeyPair, ...] = field(default=(), repr=False)
    publics: tuple[bytes, ...] = field(default=(), repr=False)
    skipped: tuple[str, ...] = ()
    only: bool = False
    agent: str = ""

    def order(self, held: Sequence[asyncssh.SSHKeyPair]) -> list[asyncssh.SSHKeyPair]:
        """Return the keys to offer, given those that the agent holds, in ssh's order: a host limits the attempts."""
        place = {public: number for number, public in enumerate(self.publics)}
        ours = sorted((k for k in held if k.key_public_data in place), key=lambda k: place[k.key_public_data])
        others = [] if self.only else [key for key in held if key.key_public_data not in place]
        if self.asked:
            return [*self.pairs, *ours, *others]
        covered = {key.key_public_data for key in ours}
        return [*ours, *others, *(pair for pair in self.pairs if pair.key_public_data not in covered)]


def read_keys(settings: SSHSettings, asked: Sequence[str]) -> Keys:
    """Read the key files; blocks.

    Raises
    ------
    ValueError, OSError, asyncssh.Error
        A file that was named by the caller can't be read, or holds no key.
    """
    tokens = settings.tokens
    configured = [expand_path(path, tokens) for path in settings.all("identityfile") or () if path != "none"]
    if settings.all("identityfile") is None:
        configured = [str(Path("~/.ssh").expanduser() / name) for name in _DEFAULTS]
    # like ssh, skip identity files that do not exist, unless the caller named them
    files = [str(Path(key).expanduser()) for key in asked] or [path for path in configured if Path(path).exists()]
    certificates = [expand_path(path, tokens) for path in settings.all("certificatefile") or ()]
    certificates = [path for path in certificates if Path(path).exists()]
    pairs: list[asyncssh.SSHKeyPair] = []
    publics: list[bytes] = []
    skipped: list[str] = []
    for file in files:
        try:
            found = _load(file, certificates)
        except (asyncssh.Error, ValueError, OSError) as error:
            if asked:
                raise
            skipped.append(f"{file} ({error})")
            continue
        pairs += found
        publics += [pair.key_public_data for pair in found] or _public(file)
    return Keys(
        tuple(files),
        bool(asked),
        tuple(pairs),
        tuple(dict.fromkeys(publics)),
        tuple(skipped),
        settings.get("identitiesonly") == "yes",
        agent_of(settings),
    )


def _load(file: str, certificates: Sequence[str]) -> Sequence[asyncssh.SSHKeyPair]:
    """Return the pairs in a private key file; none for a public or an encrypted key, which the agent may hold."""
    with Path(file).open("rb"):  # raises OSError, whose text names the file and the problem
        pass
    try:
        return asyncssh.load_keypairs([file], certlist=list(certificates), ignore_encrypted=True)
    except asyncssh.KeyImportError:
        if _public(file):
            return ()
        raise


def _public(file: str) -> list[bytes]:
    for path in (f"{file}.pub", file):
        try:
            return [asyncssh.read_public_key(path).public_data]
        except (asyncssh.KeyImportError, OSError):
            continue
    return []


def agent_of(settings: SSHSettings) -> str:
    """Return where ssh-agent listens; empty for none."""
    values = settings.all("identityagent")
    configured = values[0] if values else "SSH_AUTH_SOCK"
    if configured == "none":
        return ""
    if configured.startswith("$") and not configured.startswith("${"):
        return os.environ.get(configured[1:], "")
    if configured == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK", "")
    return str(Path(expand(configured, settings.tokens)).expanduser())


class Client(asyncssh.SSHClient):
    """The callbacks of asyncssh while it connects; also records what it does not report when that fails."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._agent: asyncssh.SSHAgentClient | None = None
        self._asked = False
        self.refused_key: asyncssh.SSHKey | None = None
        self.accepted = False
        """Whether the host accepted a key but asks for more."""
        self.wanted: tuple[str, ...] = ()
        """The methods with which the login could continue, as the host listed them last."""

    @property
    def began(self) -> bool:
        """Whether the login began; if not, the host has not judged the user or a key yet."""
        return self._asked

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """Called once bytes can be exchanged."""
        watch_refusals(conn, self._on_refusal)

    def _on_refusal(self, payload: bytes) -> None:
        length = int.from_bytes(payload[1:5], "big")
        self.wanted = tuple(payload[5 : 5 + length].decode("ascii", "replace").split(","))
        self.accepted |= payload[5 + length : 6 + length] == b"\1"

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Called for a key that is not trusted; it stays untrusted, but the error can name it.

        Parameters
        ----------
        host, addr, port
            Of the host.
        key
            The key that it presents.
        """
        self.refused_key = key
        return False

    async def public_key_auth_requested(self) -> Any:
        """Called when the host accepts keys, and again when all have been tried."""
        if self._asked:
            return None
        self._asked = True
        held: Sequence[asyncssh.SSHKeyPair] = ()
        if self._keys.agent:
            try:
                self._agent = await asyncssh.connect_agent(self._keys.agent)
                held = await self._agent.get_keys()
            except (asyncssh.Error, OSError, ValueError):
                held = ()  # no agent is not an error: there may be other keys
        return self._keys.order(held) or None

    def close(self) -> None:
        """Disconnect from the agent, which is not needed after the login."""
        if self._agent is not None:
            self._agent.close()


def is_encrypted(key: str) -> bool:
    """Whether a key file has a passphrase; blocks."""
    try:
        asyncssh.read_private_key(key)
    except asyncssh.KeyEncryptionError:
        return True
    except (asyncssh.KeyImportError, OSError) as error:
        return "assphrase" in str(error)  # asyncssh has no type of its own for a missing passphrase
    return False


async def agent_words(path: str) -> str:
    """Describe the agent and its keys, for a message."""
    try:
        async with asyncio.timeout(_AGENT_LIMIT), await asyncssh.connect_agent(path) as agent:
            names = [key.get_comment() or "unnamed" for key in await agent.get_keys()]
    except (asyncssh.Error, OSError, ValueError):
        return "ssh-agent (which does not answer)"
    return f"ssh-agent's {len(names)} keys ({', '.join(names)})" if names else "ssh-agent (which has no keys)"
