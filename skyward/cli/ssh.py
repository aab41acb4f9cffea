"""``skyward ssh``: logs in to a node of a pool of this computer, using OpenSSH."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from skyward.core.errors import ConfigError
from skyward.core.machines.ledger import Entry, Ledger

__all__ = ["Command", "command_line", "run"]


class Command(TyperCommand):
    """A command that does not parse what follows ``--``, which would be taken for the pool's name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments before ``--``; keep those after it in ``ctx.obj``."""
        here = args.index("--") if "--" in args else len(args)
        ctx.obj = args[here + 1 :]
        return super().parse_args(ctx, args[:here])


def run(
    ctx: typer.Context,
    node: Annotated[str, typer.Argument(help="A node, such as node-1, or a machine's id; see `skyward ls`.")],
    pool: Annotated[str | None, typer.Argument(help="The pool's name, or its beginning.")] = None,
) -> None:
    """Log in to a node, or run the command after -- there: `skyward ssh node-1 -- nvidia-smi`."""
    ledger = Ledger()
    line = command_line(ledger, _find(ledger, node, pool), ctx.obj)
    try:
        os.execvp(line[0], line)
    except OSError as error:
        raise ConfigError(f"can't run {line[0]}: {error}. Install OpenSSH's client (openssh-client)") from error


def command_line(ledger: Ledger, entry: Entry, command: Sequence[str]) -> list[str]:
    """Build the ssh command, and write a known-hosts file with the one host key that the machine may present.

    Parameters
    ----------
    ledger
        Has the pool's key.
    entry
        The machine.
    command
        The command to run there and its arguments; empty to log in.

    Raises
    ------
    ConfigError
        The machine has not been reached yet, or the pool's key is gone.
    """
    at = entry.endpoint
    key = ledger.key_path(entry.tag)
    if at is None or not entry.host_key:
        raise ConfigError(f"{entry.id} of {entry.tag} has not been reached yet; try again once its pool is ready")
    if not key.exists():
        raise ConfigError(f"the key of {entry.tag} is gone ({key}), so nobody can log in to its machines")
    known = ledger.known_hosts_path(entry.tag, entry.id)
    with os.fdopen(os.open(known, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"{known.name} {entry.host_key}\n")
    options = {
        "IdentityFile": _quoted(str(key)),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": _quoted(str(known)),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": known.name,
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "PreferredAuthentications": "publickey",
    }
    # -F none: the user's configuration for other hosts must not apply to a machine that is new.
    line = ["ssh", "-F", "none", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    line += ["-p", str(at.port or 22)]
    if at.user:
        line += ["-l", at.user]
    return [*line, "--", at.host, *([shlex.join(command)] if len(command) > 1 else command)]


def _find(ledger: Ledger, node: str, pool: str | None) -> Entry:
    """The machine of that name; exactly one must match."""
    tags = [entry.tag for entry in ledger.pools()]
    if pool is not None:
        tags = [pool] if pool in tags else [tag for tag in tags if tag.startswith(pool)]
        if not tags:
            raise ConfigError(
                f"no open pool of this computer is named {pool!r}; see `skyward ls`. To run a command: skyward ssh "
                f"{node} -- {pool}"
            )
    machines = [entry for entry in ledger.machines() if entry.tag in tags and entry.ended is None]
    found = [entry for entry in machines if node in (entry.node, entry.id)]
    if len(found) > 1:
        choices = " or ".join(f"skyward ssh {node} {entry.tag}" for entry in found)
        raise ConfigError(f"there are {len(found)} machines named {node!r}; use {choices}")
    if not found:
        names = ", ".join(sorted(entry.node or entry.id for entry in machines)) or "none"
        raise ConfigError(
            f"no machine is named {node!r}; there are: {names}. You can only log in from the computer that opened the "
            "pool"
        )
    return found[0]


def _quoted(path: str) -> str:
    """Quote a path that may contain spaces, as OpenSSH's configuration requires."""
    return '"' + path.replace("%", "%%") + '"'
