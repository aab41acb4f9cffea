"""Logging in to an SSH host: whose configuration counts, which keys are trusted, which are shown, what went wrong.

Host keys are always checked. asyncssh has several ways to skip that (``known_hosts=None``, ``UserKnownHostsFile none``,
jump hosts that it opens by itself), so everything is decided here and handed to it complete: a function that knows the
trusted keys, the keys to log in with, and the connection of the jump host as the tunnel.
"""

from __future__ import annotations

import asyncio
import getpass
import ipaddress
import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncssh

from skyward.core.errors import HostKeyError, HostUnreachable, LoginRefused
from skyward.core.spec import Endpoint, parse_address

__all__ = ["log_in"]

_CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"  # measured: twice the speed of asyncssh's first choice
_KEEPALIVE = 10.0  # seconds; a session pings more often, this ends links that no session watches
_KEEPALIVES = 3  # unanswered ones after which the link counts as dead
_HOPS = 8  # more jump hosts than this are taken for a loop
_HOST_KEY_KINDS = (
    "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256",
)  # fmt: skip


async def log_in(endpoint: Endpoint) -> list[asyncssh.SSHClientConnection]:
    """Connect to the jump hosts and the host itself, which is last. The caller bounds the time by cancelling.

    Raises
    ------
    HostUnreachable, HostKeyError, LoginRefused
        As their names say; never another type.
    """
    chain: list[asyncssh.SSHClientConnection] = []
    try:
        await _climb(endpoint, chain, 0)
    except BaseException:
        for connection in reversed(chain):
            connection.abort()
        raise
    return chain


async def _climb(endpoint: Endpoint, chain: list[asyncssh.SSHClientConnection], depth: int) -> None:
    """Append the connections to `endpoint`'s jump hosts and to itself."""
    if depth > _HOPS:
        raise HostUnreachable(f"{endpoint}: more than {_HOPS} jump hosts; does ProxyJump lead in a circle?")
    try:
        login = await asyncio.to_thread(_read_login, endpoint)
    except (asyncssh.Error, ValueError, TypeError, OSError, KeyError) as error:
        raise LoginRefused(f"{endpoint}: can't prepare the login: {error}") from error
    for number, hop in enumerate(login.jumps):
        # As with ssh -J: the first hop may have jump hosts of its own in the configuration, the others are reached
        # through the hop before them.
        options = {**endpoint.options, "jump": None if number == 0 else "none", "host_key": None}
        await _climb(replace(hop, options=options), chain, depth + 1)
    chain.append(await _connect(login, chain[-1] if chain else None))


@dataclass(frozen=True, slots=True)
class _Login:
    """All that is decided about one login before the first byte is sent."""

    endpoint: Endpoint
    name: str
    """The real host name or address, after the configuration was asked."""
    port: int
    user: str
    config: list[str]
    jumps: list[Endpoint]
    known: _KnownHosts
    keys: list[str]
    keys_are_asked_for: bool
    """The keys were given by the caller: they are tried first, ssh-agent's only after them."""
    agent: str
    settings: asyncssh.SSHClientConnectionOptions

    @property
    def known_as(self) -> tuple[str, int | None]:
        """The host and port under which known_hosts has its key; port None for 22."""
        return str(self.settings.config.get("HostKeyAlias") or self.name), None if self.port == 22 else self.port

    def __str__(self) -> str:
        host = f"[{self.name}]" if ":" in self.name else self.name
        alias = f" ({self.endpoint.host})" if self.endpoint.host != self.name else ""
        return f"{self.user}@{host}:{self.port}{alias}"


def _read_login(endpoint: Endpoint) -> _Login:
    """Read the configuration and key files; blocks."""
    options = endpoint.options
    config = _config_paths(options.get("config"))
    settings = asyncssh.SSHClientConnectionOptions(
        host=endpoint.host,
        port=endpoint.port if endpoint.port is not None else (),
        username=endpoint.user if endpoint.user is not None else (),
        config=config,
        client_keys=None,
        known_hosts=asyncssh.SSHKnownHosts(),
        x509_trusted_certs=None,
        tunnel=None,
        agent_path=None,
    )
    get = settings.config.get
    asked = _strings(options.get("keys"))
    agent = get("IdentityAgent") or os.environ.get("SSH_AUTH_SOCK", "")
    found = [str(Path(key).expanduser()) for key in _strings(get("IdentityFile"))]
    return _Login(
        endpoint=endpoint,
        name=settings.host,
        port=settings.port,
        user=settings.username or getpass.getuser(),
        config=config,
        jumps=_jumps(endpoint, options.get("jump"), get("ProxyJump")),
        known=_read_known_hosts(options, get),
        # ssh too passes over identity files that do not exist, unless they were asked for
        keys=[_readable(key) for key in asked] if asked else [key for key in found if Path(key).exists()],
        keys_are_asked_for=bool(asked),
        agent=str(Path(str(agent)).expanduser()) if agent and agent != "SSH_AUTH_SOCK" else "",
        settings=settings,
    )


def _config_paths(value: object) -> list[str]:
    if value is None:
        default = Path("~/.ssh/config").expanduser()
        return [str(default)] if os.access(default, os.R_OK) else []
    return [str(Path(path).expanduser()) for path in _strings(value)]


def _strings(value: object) -> list[str]:
    """A list of texts from one text or path, several, or None."""
    if value is None:
        return []
    if isinstance(value, (str, os.PathLike)):
        return [os.fspath(value)]
    if not isinstance(value, Sequence):
        raise TypeError(f"{value!r} is neither a path nor a list of paths")
    return [os.fspath(item) for item in value]


def _readable(key: str) -> str:
    path = Path(key).expanduser()
    with path.open("rb"):  # raises OSError, whose text names the file and what is wrong with it
        return str(path)


def _jumps(endpoint: Endpoint, asked: object, configured: object) -> list[Endpoint]:
    """The jump hosts, as ``-J`` spells them: with commas, maybe as ssh:// addresses, or "none"."""
    text = str((asked if asked is not None else configured) or "none")
    if text.lower() == "none":
        return []
    hops = []
    for spec in text.split(","):
        user, host, port = parse_address(spec.strip().removeprefix("ssh://").rstrip("/"), "jump")
        hops.append(Endpoint("ssh", host, port, user))
    # `Host *` with `ProxyJump bastion` is a common slip; it can't mean that the bastion is reached through itself.
    loop = asked is None and (hops[-1].host, hops[-1].port) in {(endpoint.host, endpoint.port), (endpoint.host, None)}
    return [] if loop else hops


# --- host keys ------------------------------------------------------------------------------------------------------


class _KnownHosts:
    """Trusted host keys from known_hosts files, lines in that format, or one pinned key.

    Lines that make no sense are passed over, as ssh does. A file that is missing holds no keys.
    """

    def __init__(self, lines: Sequence[tuple[str, str]], sources: Sequence[str], pinned: str | None = None) -> None:
        self.sources = list(sources)
        self.pinned = asyncssh.import_public_key(pinned) if pinned is not None else None
        self._lines: list[tuple[str, asyncssh.SSHKnownHosts]] = []
        for place, line in lines:
            entry = asyncssh.SSHKnownHosts()
            try:
                entry.load(line)
            except ValueError:
                continue
            self._lines.append((place, entry))

    def match(self, host: str, address: str, port: int | None) -> tuple[list[Any], ...]:
        """What asyncssh asks: trusted keys, trusted authorities, revoked keys (and the same for X.509: none)."""
        found: tuple[list[Any], ...] = ([], [], [], [], [], [], [])
        if self.pinned is not None:
            found[0].append(self.pinned)
            return found
        for _, entry in self._lines:
            for keys, more in zip(found[:3], _match(entry, host, address, port)[:3], strict=True):
                keys.extend(more)
        return found

    def places(self, host: str, address: str, port: int | None) -> list[str]:
        """The lines ("file line 3") with a key of this host."""
        return [place for place, entry in self._lines if _match(entry, host, address, port)[0]]


def _match(entry: asyncssh.SSHKnownHosts, host: str, address: str, port: int | None) -> Any:
    try:
        ipaddress.ip_address(address)
    except ValueError:  # through a jump host the peer's address may be a name, which asyncssh's match rejects
        address = ""
    return entry.match(host, address, port)


def _read_known_hosts(options: Mapping[str, object], get: Any) -> _KnownHosts:
    pinned = options.get("host_key")
    if pinned is not None:
        return _KnownHosts([], ["the key given for it"], str(pinned))
    given = options.get("known_hosts")
    if isinstance(given, Sequence) and not isinstance(given, str):
        return _KnownHosts([(f"known_hosts entry {n}", str(line)) for n, line in enumerate(given, 1)], ["known_hosts"])
    if given is not None:
        files = _strings(given)
    else:
        # `UserKnownHostsFile none` means an empty list, never "do not check"
        files = _strings(get("UserKnownHostsFile", ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"]))
        files += _strings(get("GlobalKnownHostsFile", ["/etc/ssh/ssh_known_hosts"]))
    lines = []
    for file in files:
        path = Path(file).expanduser()
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        lines += [(f"{path} line {n}", line) for n, line in enumerate(text.splitlines(), 1)]
    return _KnownHosts(lines, [str(Path(file).expanduser()) for file in files])


class _Client(asyncssh.SSHClient):
    """What asyncssh asks back while it connects."""

    def __init__(self, login: _Login) -> None:
        self._login = login
        self._agent: asyncssh.SSHAgentClient | None = None
        self.asked_agent = False
        self.refused_key: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Called for a key that is not trusted; it stays so, but the error can show it."""
        self.refused_key = key
        return False

    async def public_key_auth_requested(self) -> Any:
        """Called when all keys were tried: ssh-agent's keys, if they were not among them."""
        login = self._login
        only = login.settings.config.get("IdentitiesOnly")
        if self.asked_agent or not login.keys_are_asked_for or not login.agent or only:
            return None
        self.asked_agent = True
        try:
            self._agent = await asyncssh.connect_agent(login.agent)
            return list(await self._agent.get_keys())
        except (asyncssh.Error, OSError, ValueError):
            return None  # no agent is no error: the other keys were tried

    def close(self) -> None:
        """Let go of the agent; after the login it has signed what it had to."""
        if self._agent is not None:
            self._agent.close()


# --- connecting -----------------------------------------------------------------------------------------------------


async def _connect(login: _Login, tunnel: asyncssh.SSHClientConnection | None) -> asyncssh.SSHClientConnection:
    client = _Client(login)
    try:
        return await asyncssh.connect(
            login.endpoint.host, tunnel=tunnel, client_factory=lambda: client, **_arguments(login)
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise _host_key_error(login, client) from error
    except (asyncssh.PermissionDenied, asyncssh.ProtocolError, asyncssh.KeyExchangeFailed) as error:
        # ProtocolError is how OpenSSH answers too many keys; KeyExchangeFailed: no algorithm in common
        raise await _login_refused(login, error) from error
    except (asyncssh.KeyImportError, asyncssh.ConfigParseError, asyncssh.IllegalUserName) as error:
        raise LoginRefused(f"{login}: can't prepare the login: {error}") from error
    except socket.gaierror as error:
        raise HostUnreachable(
            f"{login}: the name {login.name!r} is not known ({error.strerror}); is it spelled right?"
        ) from error
    except (asyncssh.Error, OSError, ValueError) as error:
        through = " through the jump host" if tunnel is not None else ""
        raise HostUnreachable(
            f"{login} can't be reached{through}: {_reason(error)}. Is the host up, does sshd listen there on port "
            f"{login.port}, and does no firewall stand between?"
        ) from error
    finally:
        client.close()


def _arguments(login: _Login) -> dict[str, Any]:
    """Everything that asyncssh would otherwise decide by itself."""
    options = login.endpoint.options
    arguments: dict[str, Any] = {
        "config": login.config,
        "known_hosts": login.known.match,
        "x509_trusted_certs": None,
        "compression_algs": None,
        "keepalive_interval": _KEEPALIVE,
        "keepalive_count_max": _KEEPALIVES,
        "client_keys": login.keys,
        "ignore_encrypted": True,  # such keys may be in the agent
        "password_auth": False,
        "kbdint_auth": False,
        "host_based_auth": False,
        "gss_kex": False,
        "gss_auth": False,
        "preferred_auth": "publickey",
        "request_pty": False,
        "login_timeout": 0,  # the whole connect has a limit
    }
    if login.endpoint.port is not None:
        arguments["port"] = login.endpoint.port
    if login.endpoint.user is not None:
        arguments["username"] = login.endpoint.user
    if login.keys_are_asked_for:
        arguments["agent_path"] = None  # see _Client.public_key_auth_requested
        arguments["agent_identities"] = None
    if options.get("agent_forwarding") or (login.keys_are_asked_for and login.settings.config.get("ForwardAgent")):
        arguments["agent_forwarding"] = login.agent
    if login.settings.config.get("Ciphers") is None:
        arguments["encryption_algs"] = _CIPHERS
    host, port = login.known_as
    known, authorities, *_ = login.known.match(host, "", port)
    if known and not authorities and login.settings.config.get("HostKeyAlgorithms") is None:
        # Kinds of key that are known first; the others after them, so that a host that lost its key shows the new one.
        kinds = [algorithm.decode() for key in known for algorithm in key.sig_algorithms]
        kinds = [kind for kind in kinds if kind in _HOST_KEY_KINDS]
        arguments["server_host_key_algs"] = list(dict.fromkeys([*kinds, *_HOST_KEY_KINDS]))
    return arguments


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncssh.ConnectionLost):
        return f"the connection broke during the login ({error})"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


def _host_key_error(login: _Login, client: _Client) -> HostKeyError:
    host, port = login.known_as
    name = host if port is None else f"[{host}]:{port}"
    key = client.refused_key
    shown = f"a {key.get_algorithm()} key {key.get_fingerprint()}" if key else "a key that is revoked or can't be used"
    files = " or ".join(login.known.sources[:2]) or "any known_hosts file"
    if login.known.pinned is not None:
        wanted = login.known.pinned.get_fingerprint()
        return HostKeyError(
            f"{login} shows {shown}, but {wanted} was pinned for it: somebody may be intercepting the connection, or "
            "the host was set up anew. Make sure which, and give the right key"
        )
    places = login.known.places(host, "" if login.jumps else login.name, port)
    if places:
        file = places[0].rpartition(" line ")[0]
        how = f" (ssh-keygen -R {shlex.quote(name)} -f {shlex.quote(file)})" if file else ""
        return HostKeyError(
            f"{login} shows {shown}, which is not the one in {', '.join(places)}: somebody may be intercepting the "
            f"connection, or the host was set up anew. If you are sure of the latter, remove that line{how} "
            "and add the new key"
        )
    at = f"-p {port} {host}" if port else host
    return HostKeyError(
        f"{login} shows {shown}, and no key of it is in {files}. See by another way that this is the host's "
        f"fingerprint (on it: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then add it: "
        f"ssh-keyscan {at} >> ~/.ssh/known_hosts; or name the file to use with known_hosts="
    )


async def _login_refused(login: _Login, error: asyncssh.Error) -> LoginRefused:
    tried = [*login.keys] if login.keys else ["the default keys in ~/.ssh"]
    if login.agent:
        tried.append(await _agent_keys(login.agent))
    denied = isinstance(error, asyncssh.PermissionDenied)
    why = "" if denied else f" ({error})"
    encrypted = await asyncio.to_thread(lambda: [key for key in login.keys if _is_encrypted(key)])
    if encrypted:
        advice = f"{', '.join(encrypted)} has a passphrase: add it to ssh-agent (ssh-add {encrypted[0]})"
    else:
        advice = f"Is {login.user!r} the right user, and is one of the public keys in its ~/.ssh/authorized_keys there?"
    return LoginRefused(f"{login} refused the login of {login.user!r}{why}; tried {', '.join(tried)}. {advice}")


def _is_encrypted(key: str) -> bool:
    try:
        asyncssh.read_private_key(key)
    except asyncssh.KeyEncryptionError:
        return True
    except (asyncssh.KeyImportError, OSError) as error:
        return "assphrase" in str(error)  # asyncssh has no type of its own for a missing passphrase
    return False


async def _agent_keys(path: str) -> str:
    try:
        async with asyncio.timeout(2), await asyncssh.connect_agent(path) as agent:
            names = [key.get_comment() or "unnamed" for key in await agent.get_keys()]
    except (asyncssh.Error, OSError, ValueError):
        return "ssh-agent (which does not answer)"
    return f"ssh-agent's {len(names)} keys ({', '.join(names)})" if names else "ssh-agent (which has no keys)"
