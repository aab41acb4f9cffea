"""One login to an SSH host: everything decided before the first byte is sent, the attempt, and what went wrong.

Host keys are always checked. asyncssh has several ways to skip that (``known_hosts=None``, ``UserKnownHostsFile none``,
jump hosts that it connects to by itself), so everything is decided here and passed to it complete: a function that
knows the trusted keys, the keys to log in with, and the jump host's connection as the tunnel. Which connections exist,
and how many logins run at once, is up to ssh_routes.py.
"""

from __future__ import annotations

import asyncio
import errno
import fnmatch
import os
import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.encryption import get_encryption_algs
from asyncssh.kex import get_kex_algs
from asyncssh.mac import get_mac_algs
from asyncssh.public_key import get_certificate_algs, get_public_key_algs

from skyward.core.errors import HostKeyError, HostUnreachable, LoginRefused
from skyward.core.spec import Endpoint, parse_address
from skyward.core.system import open_files
from skyward.transport.ssh_config import SSHSettings, expand, expand_path, read_settings
from skyward.transport.ssh_keys import Client, Keys, agent_of, agent_words, is_encrypted, read_keys
from skyward.transport.ssh_known import Entries, KnownHosts, ask_command, read_revoked

__all__ = ["Dropped", "Login", "attempt", "read_login"]

_CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"  # measured: twice the speed of asyncssh's first choice
_KEEPALIVE = 10.0  # seconds; sessions ping more often, so this only ends links that no session watches
_KEEPALIVES = 3  # unanswered ones after which the link counts as dead
_HOST_KEY_KINDS = (
    "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256",
)  # fmt: skip
_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_SYSTEM_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
# Unsupported keywords of the configuration that a login must not ignore, with what to do instead.
_UNSUPPORTED = {
    "bindinterface": "is not supported; use BindAddress with the interface's address instead",
    "proxyusefdpass": "is not supported; let ProxyCommand forward the bytes itself",
}


class Dropped(HostUnreachable):
    """The host closed the connection before the login began: it may have too many concurrent logins."""


@dataclass(frozen=True, slots=True)
class Login:
    """Everything decided about one login before the first byte is sent.

    Attributes
    ----------
    endpoint, settings
        The host as given, and what is configured for it.
    jumps
        Hosts to go through, nearest first.
    proxy
        A command whose input and output are connected to the host; empty for none.
    known, keys
        The keys that the host may present, and those that we have.
    arguments
        Further arguments for asyncssh.
    """

    endpoint: Endpoint
    settings: SSHSettings
    jumps: tuple[Endpoint, ...]
    proxy: str
    known: KnownHosts
    keys: Keys
    arguments: Mapping[str, Any]

    @property
    def known_as(self) -> tuple[str, int]:
        """The host and port under which known_hosts lists its key."""
        return _known_as(self.settings)

    def __str__(self) -> str:
        at = self.settings
        host = f"[{at.name}]" if ":" in at.name else at.name
        alias = f" ({self.endpoint.host})" if self.endpoint.host != at.name else ""
        return f"{at.user}@{host}:{at.port}{alias}"


def read_login(endpoint: Endpoint) -> Login:
    """Read the configuration, the known hosts and the key files; blocks.

    Raises
    ------
    LoginRefused
        One of them can't be read, or asks for something unsupported.
    """
    try:
        return _read_login(endpoint)
    except (asyncssh.Error, ValueError, TypeError, OSError, KeyError) as error:
        raise LoginRefused(f"{endpoint}: can't prepare the login: {error}") from error


def _read_login(endpoint: Endpoint) -> Login:
    options = endpoint.options
    config = options.get("config")
    files = None if config is None else [str(Path(path).expanduser()) for path in _strings(config)]
    settings = read_settings(endpoint.host, endpoint.port, endpoint.user, files)
    for word, advice in _UNSUPPORTED.items():
        if settings.get(word) not in (None, "no"):
            raise ValueError(f"{word} {settings.get(word)} of the ssh configuration {advice}")
    if settings.get("pubkeyauthentication") in ("no", "false"):
        raise ValueError("the ssh configuration says PubkeyAuthentication no, but only logins with a key are supported")
    jump = options.get("jump")
    known = _read_known_hosts(settings, options)
    return Login(
        endpoint,
        settings,
        tuple(_jumps(endpoint, settings, jump)),
        (settings.get("proxycommand") or "") if jump is None else "",
        known,
        read_keys(settings, _strings(options.get("keys"))),
        _arguments(settings, options, known),
    )


def _strings(value: object) -> list[str]:
    """Return a list of strings from one string or path, several, or None."""
    if value is None:
        return []
    if isinstance(value, (str, os.PathLike)):
        return [os.fspath(value)]
    if not isinstance(value, Sequence):
        raise TypeError(f"{value!r} is neither a path nor a list of paths")
    return [os.fspath(item) for item in value]


def _jumps(endpoint: Endpoint, settings: SSHSettings, asked: object) -> list[Endpoint]:
    """Return the jump hosts, given as for ``-J``: separated by commas, possibly as ssh:// addresses, or "none"."""
    configured = settings.get("proxyjump")
    text = str(asked) if asked is not None else expand(configured, settings.tokens) if configured else "none"
    if text.lower() == "none":
        return []
    hops = []
    for spec in text.split(","):
        address = spec.strip().removeprefix("ssh://").rstrip("/")
        # ssh -G prints brackets around all hosts, while parse_address expects them for IPv6 only
        user, host, port = parse_address(re.sub(r"\[([^:\]]*)\]", r"\1", address), "jump")
        hops.append(Endpoint("ssh", host, port, user))
    # `Host *` with `ProxyJump bastion` is a common mistake; it can't mean that the bastion is reached through itself.
    loop = asked is None and (hops[-1].host, hops[-1].port) in {(endpoint.host, endpoint.port), (endpoint.host, None)}
    return [] if loop else hops


def _known_as(settings: SSHSettings) -> tuple[str, int]:
    alias = settings.get("hostkeyalias")
    return (alias, 22) if alias else (settings.name, settings.port)


def _read_known_hosts(
    settings: SSHSettings, options: Mapping[str, object], shown: asyncssh.SSHKey | None = None
) -> KnownHosts:
    name, port = _known_as(settings)
    pinned = options.get("host_key")
    if pinned is not None:
        return KnownHosts.pin(name, str(pinned))
    tokens = settings.tokens
    revoked = settings.get("revokedhostkeys")
    bad = read_revoked(expand_path(revoked, tokens)) if revoked else []
    given = options.get("known_hosts")
    if isinstance(given, Sequence) and not isinstance(given, str):
        numbered = [(f"known_hosts entry {number}", str(line)) for number, line in enumerate(given, 1)]
        return replace(KnownHosts.look_up(name, port, [Entries(numbered)], [], bad), sources=("known_hosts",))
    if given is not None:
        return KnownHosts.look_up(name, port, [], _paths(_strings(given), {}), bad)
    # `UserKnownHostsFile none` means an empty list, never "do not check"
    files = _paths(_or(settings.all("userknownhostsfile"), _KNOWN_HOSTS), tokens)
    files += _paths(_or(settings.all("globalknownhostsfile"), _SYSTEM_KNOWN_HOSTS), tokens)
    command = settings.get("knownhostscommand")
    asked = [] if command is None else [ask_command(command, tokens, name, shown)]
    return KnownHosts.look_up(name, port, asked, files, bad)


def _or(values: Sequence[str] | None, others: Sequence[str]) -> Sequence[str]:
    return others if values is None else [value for value in values if value.lower() != "none"]


def _paths(files: Sequence[str], tokens: Mapping[str, str]) -> list[str]:
    return [expand_path(file, tokens) if tokens else str(Path(file).expanduser()) for file in files]


# --- arguments for asyncssh -----------------------------------------------------------------------------------------


def _arguments(settings: SSHSettings, options: Mapping[str, object], known: KnownHosts) -> dict[str, Any]:
    """Return everything that asyncssh would otherwise decide by itself."""
    arguments: dict[str, Any] = {
        "config": [],
        "port": settings.port,
        "username": settings.user,
        "known_hosts": known.match,
        "x509_trusted_certs": None,
        "compression_algs": None,
        "keepalive_interval": _KEEPALIVE,
        "keepalive_count_max": _KEEPALIVES,
        "client_keys": None,  # Client.public_key_auth_requested provides these, and the agent's
        "agent_path": None,
        "password_auth": False,
        "kbdint_auth": False,
        "host_based_auth": False,
        "gss_kex": False,
        "gss_auth": False,
        "preferred_auth": "publickey",
        "request_pty": False,
        "login_timeout": 0,  # the caller limits the whole connect
        "encryption_algs": _algorithms(settings, "ciphers", get_encryption_algs()) or _CIPHERS,
        "env": _environment(settings),
    }
    supported = {
        "kex_algs": ("kexalgorithms", get_kex_algs()),
        "mac_algs": ("macs", get_mac_algs()),
        "signature_algs": ("casignaturealgorithms", get_public_key_algs()),
        "server_host_key_algs": ("hostkeyalgorithms", [*get_certificate_algs(), *get_public_key_algs()]),
    }
    for name, (word, names) in supported.items():
        chosen = _algorithms(settings, word, names)
        if chosen is not None:
            arguments[name] = chosen
    if "server_host_key_algs" not in arguments and known.keys and not known.authorities:
        # Known kinds of key first, then the others, so that a host that lost its key presents its new one.
        kinds = [algorithm.decode() for key in known.keys for algorithm in key.sig_algorithms]
        kinds = [kind for kind in kinds if kind in _HOST_KEY_KINDS]
        arguments["server_host_key_algs"] = list(dict.fromkeys([*kinds, *_HOST_KEY_KINDS]))
    return {**arguments, **_line_arguments(settings), **_forwarding(settings, options)}


def _line_arguments(settings: SSHSettings) -> dict[str, Any]:
    """Return what is configured about the TCP connection."""
    arguments: dict[str, Any] = {}
    family = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}.get(settings.get("addressfamily") or "any")
    if family is not None:
        arguments["family"] = family
    if bind := settings.get("bindaddress"):
        arguments["local_addr"] = (bind, 0)
    if settings.get("tcpkeepalive") == "no":
        arguments["tcp_keepalive"] = False
    if limit := settings.get("connecttimeout"):
        arguments["connect_timeout"] = float(limit) or None
    return arguments


def _forwarding(settings: SSHSettings, options: Mapping[str, object]) -> dict[str, Any]:
    """Return which agent commands on the host may use, if any."""
    configured = settings.get("forwardagent") or "no"
    if options.get("agent_forwarding") or configured == "yes":
        return {"agent_forwarding": agent_of(settings)}
    if configured == "no":
        return {}
    return {"agent_forwarding": os.environ.get(configured[1:], "") if configured.startswith("$") else configured}


def _algorithms(settings: SSHSettings, word: str, supported: Sequence[bytes]) -> list[str] | str | None:
    """Return the algorithms of a configured list that asyncssh supports; None if nothing is configured."""
    text = settings.get(word)
    if text is None or text.startswith(("+", "-", "^")):  # signs remain only if asyncssh read the configuration
        return text
    names = {name.decode() for name in supported}
    chosen = [name for name in text.split(",") if name in names]
    if not chosen:
        raise ValueError(f"none of the configured {word} ({text}) is supported; these are: {', '.join(sorted(names))}")
    return chosen


def _environment(settings: SSHSettings) -> dict[str, str]:
    """Return the variables that SendEnv and SetEnv offer to the host, which accepts what it likes."""
    patterns = [pattern for line in settings.all("sendenv") or () for pattern in line.split()]
    sent = {name: value for name, value in os.environ.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}
    given = (text.partition("=") for text in settings.all("setenv") or ())
    return {**sent, **{name: value for name, _, value in given}}


# --- connecting -----------------------------------------------------------------------------------------------------


async def attempt(
    login: Login,
    *,
    tunnel: asyncssh.SSHClientConnection | None = None,
    hop: str = "",
    sock: socket.socket | None = None,
) -> asyncssh.SSHClientConnection:
    """Log in: through a jump host, over a socket, or directly.

    Parameters
    ----------
    login
        What was decided about it.
    tunnel, hop
        The connection to the jump host, and its name for messages.
    sock
        A socket that is connected to the host.

    Raises
    ------
    Dropped
        The host closed the connection before the login began; another attempt may succeed.
    HostUnreachable, HostKeyError, LoginRefused
        As their names say; never any other type.
    """
    client = Client(login.keys)
    path: dict[str, Any] = {"sock": sock} if sock is not None else {"tunnel": tunnel}
    try:
        return await asyncssh.connect(login.settings.name, client_factory=lambda: client, **path, **login.arguments)
    except asyncssh.HostKeyNotVerifiable as error:
        known = await _ask_again(login, client)
        if known is None:
            raise _host_key_error(login, client) from error
        again = replace(login, known=known, arguments={**login.arguments, "known_hosts": known.match})
    except (asyncssh.Error, OSError, ValueError) as error:
        raise await _mapped(login, client, error, hop) from error
    finally:
        client.close()
    if sock is not None:
        raise Dropped(f"{login}: its key is known now")  # the command must connect again
    return await attempt(again, tunnel=tunnel, hop=hop)


async def _ask_again(login: Login, client: Client) -> KnownHosts | None:
    """Ask a KnownHostsCommand that takes the key as an argument. Returns its answer if it knows the key, else None."""
    command = login.settings.get("knownhostscommand") or ""
    key = client.refused_key
    asked = login.endpoint.options
    if key is None or not any(token in command for token in ("%K", "%f", "%t")) or asked.get("known_hosts") is not None:
        return None
    try:
        known = await asyncio.to_thread(_read_known_hosts, login.settings, asked, key)
    except ValueError:
        return None
    return known if key in known.keys else None


async def _mapped(
    login: Login, client: Client, error: Exception, hop: str
) -> HostUnreachable | HostKeyError | LoginRefused:
    """Map an error of asyncssh's or the system's to one of our tree."""
    refusals = (asyncssh.PermissionDenied, asyncssh.ProtocolError, asyncssh.KeyExchangeFailed)
    if isinstance(error, asyncssh.ChannelOpenError):
        return _no_way_on(login, error, hop)
    if not client.began and _is_drop(error):
        return Dropped(_dropped_text(login))
    if isinstance(error, refusals):
        # ProtocolError is OpenSSH's answer to too many keys; KeyExchangeFailed means no algorithm in common
        return await _login_refused(login, client, error)
    if isinstance(error, (asyncssh.KeyImportError, asyncssh.ConfigParseError, asyncssh.IllegalUserName)):
        return LoginRefused(f"{login}: can't prepare the login: {error}")
    if isinstance(error, socket.gaierror):
        return HostUnreachable(
            f"{login}: the name {login.settings.name!r} can't be resolved ({error.strerror}); is it spelled right?"
        )
    through = f" through the jump host {hop}" if hop else ""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        advice = open_files.advice(64)
        return HostUnreachable(f"{login} can't be reached{through}: this process can open no more files; {advice}")
    return HostUnreachable(
        f"{login} can't be reached{through}: {_reason(error)}. Is the host up, does sshd listen there on port "
        f"{login.settings.port}, and is no firewall in the way?"
    )


def _is_drop(error: Exception) -> bool:
    if isinstance(error, asyncssh.DisconnectError) and error.code == asyncssh.DISC_TOO_MANY_CONNECTIONS:
        return True
    return isinstance(error, (asyncssh.ConnectionLost, ConnectionResetError, BrokenPipeError))


def _dropped_text(login: Login) -> str:
    return (
        f"{login} accepts connections and closes them before the login. Its sshd may have too many concurrent logins "
        "(MaxStartups in its sshd_config) or have banned this address for a while (PerSourcePenalties, fail2ban), or "
        "something other than sshd listens there"
    )


def _no_way_on(login: Login, error: asyncssh.ChannelOpenError, hop: str) -> HostUnreachable:
    """Return the error for a jump host that was reached but does not connect us further."""
    if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        return HostUnreachable(
            f"the jump host {hop} does not allow connections to {login}: {error.reason} (its sshd_config must allow "
            "AllowTcpForwarding and PermitOpen for this host and the user there)"
        )
    return HostUnreachable(
        f"{login} can't be reached from the jump host {hop}: {error.reason or 'nothing answers'}. Is the host up, does "
        f"sshd listen there on port {login.settings.port}, and is there no firewall between the two?"
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncssh.ConnectionLost):
        return f"the connection broke during the login ({error})"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


def _host_key_error(login: Login, client: Client) -> HostKeyError:
    known, key = login.known, client.refused_key
    shown = f"a {key.get_algorithm()} key {key.get_fingerprint()}" if key else "a key that is revoked or unusable"
    files = " or ".join(known.sources[:2]) or "any known_hosts file"
    if known.pinned:
        return HostKeyError(
            f"{login} presents {shown}, but {known.keys[0].get_fingerprint()} was pinned for it: somebody may be "
            "intercepting the connection, or the host was reinstalled. Find out which, and give the right key"
        )
    if known.places:
        file = known.places[0].rpartition(" line ")[0]
        how = f" (ssh-keygen -R {shlex.quote(known.name)} -f {shlex.quote(file)})" if file else ""
        return HostKeyError(
            f"{login} presents {shown}, which is not the one in {', '.join(known.places)}: somebody may be "
            "intercepting the connection, or the host was reinstalled. If you are sure of the latter, remove that "
            f"line{how} and add the new key"
        )
    host, port = login.known_as
    at = host if port == 22 else f"-p {port} {host}"
    return HostKeyError(
        f"{login} presents {shown}, and {files} has no key of it. Verify by other means that this is the host's "
        f"fingerprint (on the host: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then add it: "
        f"ssh-keyscan {at} >> ~/.ssh/known_hosts; or give the file to use with known_hosts="
    )


async def _login_refused(login: Login, client: Client, error: Exception) -> LoginRefused:
    keys, user = login.keys, login.settings.user
    if client.accepted:
        return LoginRefused(
            f"{login} accepted a key of {user!r}, but also asks for {' or '.join(client.wanted)} "
            "(AuthenticationMethods in its sshd_config). Second factors and ssh's ControlMaster are not supported. Ask "
            "its administrator to allow logins by key alone from this computer"
        )
    tried = [*keys.files] or ["no key file (none with a default name is in ~/.ssh)"]
    if keys.agent:
        tried.append(await agent_words(keys.agent))
    why = "" if isinstance(error, asyncssh.PermissionDenied) else f" ({error})"
    encrypted = await asyncio.to_thread(lambda: [key for key in keys.files if is_encrypted(key)])
    if encrypted:
        advice = f"{', '.join(encrypted)} has a passphrase: add it to ssh-agent (ssh-add {encrypted[0]})"
    elif client.wanted and "publickey" not in client.wanted and not client.began:
        advice = f"It accepts no keys at all, only {', '.join(client.wanted)}; only keys are supported here"
    else:
        advice = f"Is {user!r} the right user, and is one of the public keys in its ~/.ssh/authorized_keys there?"
    skipped = f"; skipped: {', '.join(keys.skipped)}" if keys.skipped else ""
    if provider := login.settings.get("pkcs11provider"):
        skipped += f"; keys of PKCS11Provider are only used from ssh-agent (ssh-add -s {provider})"
    return LoginRefused(f"{login} refused the login of {user!r}{why}; tried {', '.join(tried)}{skipped}. {advice}")
