"""Sends a machine what it lacks to make environments: uv, and a Python of the driver's minor version."""

from __future__ import annotations

import asyncio
import secrets
import shlex
from collections.abc import Callable
from pathlib import Path

from skyward.core.errors import LinkError
from skyward.core.interfaces import CommandOutput, Shell
from skyward.core.packages.fetch import Target
from skyward.core.packages.python_builds import python_build
from skyward.core.packages.uv_program import packed_uv, uv_name

__all__ = ["send_python", "send_uv"]

_PROBE = 512 * 1024  # bytes that are sent first, to see how fast the line is
_PATIENCE = 3.0  # seconds that the rest of uv may take where pip would do; it saves about twice as many
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
        if await _send_pieces(shell, data, piece, needed=needed):
            done = await _run(shell, _UNPACK_UV, tools=f"{root}/tools", name=name, piece=piece)
            return f"{root}/tools/{name}" if done.status == 0 else ""
        await _run(shell, 'rm -f "$piece".*', piece=piece)
    except LinkError:
        raise
    except (OSError, TimeoutError):  # a full disk, say, which the next step reports in full
        await _run(shell, 'rm -f "$piece".*', piece=piece)
    return ""


async def _send_pieces(shell: Shell, data: bytes, piece: str, *, needed: bool) -> bool:
    """Send the data as two files; only the first if the second would take too long."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await shell.put(data[:_PROBE], f"{piece}.0")
    expected = (loop.time() - began) * max(0, len(data) - _PROBE) / _PROBE
    if not needed and expected > _PATIENCE:
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


async def _run(shell: Shell, script: str, **values: str) -> CommandOutput:
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in values.items()]
    return await shell.run("".join(lines) + script, timeout=_UNPACK_LIMIT)
