"""Sends a machine what makes environments: uv, a Python of the driver's minor version, and compiled modules."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import math
import secrets
import shlex
from collections.abc import Callable
from pathlib import Path

from skyward.core.errors import LinkError
from skyward.core.interfaces import CommandOutput, Shell
from skyward.core.packages import compile_ahead
from skyward.core.packages.compiled_modules import packed_modules
from skyward.core.packages.fetch import Target
from skyward.core.packages.python_builds import python_build
from skyward.core.packages.uv_program import packed_uv, uv_name

__all__ = ["compile_modules", "send_compiled", "send_python", "send_uv"]

_PROBE = 512 * 1024  # bytes that are sent first, to see how fast the line is
_PATIENCE = 3.0  # seconds that the rest of uv may take where pip would do; it saves about twice as many
_COMPILED_PATIENCE = 2.0  # the same of compiled modules, which are sent while packages are installed
_FEW = 100  # modules that a machine has compiled before an archive of them is there
_UNPACK_LIMIT = 120.0

_UNPACK_UV = r"""
umask 077
draft=$tools/.$name.$$
cat "$piece".* | gzip -dc >"$draft" && chmod 700 "$draft" && "$draft" --version >/dev/null 2>&1 &&
    mv -f "$draft" "$tools/$name"
status=$?
rm -f "$draft" "$piece".*
exit "$status"
"""

_UNPACK_PYTHON = r"""
umask 077
draft=$pythons/.$name.$$
mkdir "$draft" && gzip -dc "$archive" | (cd "$draft" && tar -xf -) &&
    "$draft/$name/bin/python$minor" -c 'import ssl, zlib' &&
    { [ -d "$pythons/$name" ] || mv "$draft/$name" "$pythons"; }
status=$?
rm -rf "$draft" "$archive"
exit "$status"
"""


_COMPILE = r"""
umask 077
cd "$env"/lib/python*/site-packages || exit 1
set --
[ -z "$archive" ] || set -- "$archive".*
"$env/bin/python" -I -c "$compile" . "$@"
rm -f "$@"
"""


async def send_uv(
    shell: Shell, root: str, target: Target, *, system: str, driver: str, needed: bool, on_step: Callable[[str], None]
) -> str:
    """Send uv; return where it is there, or an empty text if that is not possible or would take longer than it saves.

    Parameters
    ----------
    shell
        Of the machine.
    root
        Our folder there.
    target
        What programs must be built for.
    system, driver
        Kinds of the machine and of this one, as ``uname -sm`` prints them.
    needed
        Whether nothing works without it, so that sending may take any time.
    on_step
        Called with a few words on what is being done.
    """
    packed = await asyncio.to_thread(packed_uv, system, driver, target)
    if packed is None:
        return ""
    on_step("sending uv")
    data = await asyncio.to_thread(packed.read_bytes)
    name = f"{uv_name()}-{target.machine}"
    piece = f"{root}/tools/.{name}.{secrets.token_hex(6)}"
    try:
        if await _send_pieces(shell, data, piece, math.inf if needed else _PATIENCE):
            done = await _run(shell, _UNPACK_UV, tools=f"{root}/tools", name=name, piece=piece)
            return f"{root}/tools/{name}" if done.status == 0 else ""
        await _run(shell, 'rm -f "$piece".*', piece=piece)
    except LinkError:
        raise
    except (OSError, TimeoutError):  # a full disk, say, which the next step reports in full
        await _run(shell, 'rm -f "$piece".*', piece=piece)
    return ""


async def send_compiled(shell: Shell, root: str, modules: tuple[str, ...], on_step: Callable[[str], None]) -> str:
    """Send what is compiled of modules here; return where it is there, or an empty text if compiling them is quicker.

    Parameters
    ----------
    shell, root, on_step
        As for `send_uv`.
    modules
        Files, relative to ``site-packages``.
    """
    if len(modules) < _FEW:
        return ""
    data = await asyncio.to_thread(packed_modules, modules)
    on_step("sending compiled modules")
    piece = f"{root}/tools/.compiled-{hashlib.sha256(data).hexdigest()[:16]}"  # one at most stays if the rest fails
    try:
        await _send_pieces(shell, data, piece, _COMPILED_PATIENCE)
    except LinkError:
        raise
    except (OSError, TimeoutError):  # a full disk, say, which the next step reports in full
        pass
    return piece


async def compile_modules(shell: Shell, env: str, modules: tuple[str, ...], archive: str) -> None:
    """Have a machine compile modules of an environment, or take them from what was sent.

    Parameters
    ----------
    shell
        Of the machine.
    env
        The environment's folder.
    modules, archive
        As for `send_compiled`, and what that returned.
    """
    program = inspect.getsource(compile_ahead)
    with contextlib.suppress(TimeoutError):  # slots compile the rest
        await _run(shell, _COMPILE, "\n".join(modules).encode(), env=env, archive=archive, compile=program)


async def _send_pieces(shell: Shell, data: bytes, piece: str, patience: float) -> bool:
    """Send the data as two files; only the first if the second would take longer than that many seconds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await shell.put(data[:_PROBE], f"{piece}.0")
    expected = (loop.time() - began) * max(0, len(data) - _PROBE) / _PROBE
    if expected > patience:
        return False
    await shell.put(data[_PROBE:], f"{piece}.1")
    return True


async def send_python(shell: Shell, root: str, target: Target, on_step: Callable[[str], None]) -> CommandOutput:
    """Send a Python; return what unpacking it there said.

    Parameters
    ----------
    shell, root, target, on_step
        As for `send_uv`.

    Raises
    ------
    PythonNotFound
        There is none here to send.
    LinkError, OSError
        It can't be sent.
    """
    on_step(f"fetching Python {target.python} for the host, which can't get it itself")
    archive = await asyncio.to_thread(python_build, target)
    name = archive.name.removesuffix(".tar.gz")
    on_step(f"sending {name}")
    there = f"{root}/pythons/.{archive.name}.{secrets.token_hex(6)}"
    await shell.put(await asyncio.to_thread(Path(archive).read_bytes), there)
    return await _run(shell, _UNPACK_PYTHON, pythons=f"{root}/pythons", name=name, archive=there, minor=target.python)


async def _run(shell: Shell, script: str, given: bytes = b"", **values: str) -> CommandOutput:
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in values.items()]
    return await shell.run("".join(lines) + script, input=given, timeout=_UNPACK_LIMIT)
