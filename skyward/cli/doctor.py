"""``skyward doctor``: checks what is set up and what is not, with advice for each problem."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from skyward.cli import image, sources
from skyward.cli.output import as_json, print_line, waiting
from skyward.core.errors import SkywardError
from skyward.core.gpus import described
from skyward.core.interfaces import Inspectable, Rental
from skyward.core.machines.ledger import Ledger
from skyward.worker import gpu_search
from skyward.worker.gpu_shares import GpuError

__all__ = ["Finding", "run"]

_MARK = {True: "ok", False: "WRONG", None: "-"}


@dataclass(frozen=True)
class Finding:
    """One finding. `ok` is None if it is not set up, which is not an error.

    It is a `skyward.core.interfaces.Check` with the place that was checked.
    """

    where: str
    what: str
    ok: bool | None
    detail: str
    advice: str = ""


def run(
    provider: sources.NamedProviders = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    program: Annotated[
        Path | None, typer.Option("--image", help="Only show what nodes would get for this script.", exists=True)
    ] = None,
) -> None:
    """Check credentials, quotas, the permissions of keys, and this computer, and say how to fix problems."""
    findings = _checks(provider) if program is None else [Finding(*item) for item in image.items(program)]
    if json:
        as_json([dataclasses.asdict(finding) for finding in findings])
    else:
        _show(findings)
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)


def _checks(provider: sources.NamedProviders) -> list[Finding]:
    findings = [*_computer(), *_ssh_folder(Path("~/.ssh").expanduser()), *_state()]
    asked = sources.named(provider) if provider else sources.plain()
    with waiting(f"querying {', '.join(map(str, asked))}"):
        answers = sources.ask(asked, _examine)
    for answer in answers:
        if answer.error is not None:
            findings.append(Finding(str(answer.source), "provider", False, str(answer.error)))
        findings += answer.value or ()
    return findings


def _show(findings: Iterable[Finding]) -> None:
    where = ""
    for finding in findings:
        if finding.where != where:
            where = finding.where
            print_line(where)
        print_line(f"  {_MARK[finding.ok]:<5}  {finding.what}: {finding.detail}".replace("\n", "\n         "))
        if finding.advice and not finding.ok:
            print_line(f"         -> {finding.advice}")


def _examine(source: sources.ProviderSource) -> list[Finding]:
    if source.is_bare:
        return [Finding(str(source), "settings", None, str(source.made), f"only if you use {source}")]
    try:
        provider = source.provider
    except SkywardError as error:
        advice = "check its settings, or reinstall its package"
        return [Finding(str(source), "provider", False, str(error), advice)]
    if not isinstance(provider, Rental):
        return [Finding(str(source), "provider", True, "rents no machines")]
    if isinstance(provider, Inspectable):
        return [
            Finding(str(source), check.what, check.ok, check.detail, check.advice) for check in provider.examination()
        ]
    try:
        count = len(provider.all_machines())
    except SkywardError as error:
        return [Finding(str(source), "account", False, str(error), "see its documentation for how to set it up")]
    return [Finding(str(source), "account", True, f"reachable; {count} machine(s) in use")]


def _computer() -> Iterator[Finding]:
    here = "this computer"
    yield Finding(here, "Python", True, f"{platform.python_version()}, {sys.executable}")
    tried = True if sys.platform == "linux" else None
    advice = "skyward's tests only imitate such a system, on Linux; it has not been tested on a real one yet"
    yield Finding(here, "system", tried, platform.platform(), advice)
    ssh = shutil.which("ssh")
    advice = "install OpenSSH's client: `skyward ssh` needs it, and sky.SSH reads ssh configurations better with it"
    if ssh is None:
        yield Finding(here, "ssh", None, "no ssh command found", advice)
    else:
        ran = subprocess.run([ssh, "-V"], capture_output=True, text=True, check=False)
        yield Finding(here, "ssh", ran.returncode == 0, f"{(ran.stderr or ran.stdout).strip()}, {ssh}", advice)
    yield _gpus()


def _gpus() -> Finding:
    """Check for GPUs, as the agents of `sky.Local` do."""
    here, what = "this computer", "GPUs"
    try:
        found = gpu_search.find(os.environ)
    except GpuError as error:
        return Finding(here, what, False, str(error), "Worker(gpus=...) works here once the driver does")
    if not found.gpus:
        return Finding(here, what, None, f"none; {found.remark}", "only Worker(gpus=...) needs them")
    used = ", ".join("unknown" if gpu.used is None else f"{gpu.used / 2**30:.3g} GiB" for gpu in found.gpus)
    remark = f" ({found.remark})" if found.remark else ""
    return Finding(here, what, True, f"{described(found.gpus)}{remark}; memory in use: {used}")


def _ssh_folder(folder: Path) -> Iterator[Finding]:
    """Check for permissions that the ssh command rejects, or that let others read keys."""
    if not folder.is_dir():
        yield Finding("keys", str(folder), None, "does not exist; only sky.SSH needs it")
        return
    yield _mode(folder, 0o700)
    for path in sorted(folder.iterdir()):
        if path.name == "config" and path.is_file():
            yield _mode(path, 0o644, "ssh rejects a configuration that others can write")
        elif _is_private_key(path):
            yield _mode(path, 0o600, "ssh rejects a key that others can read")


def _is_private_key(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return path.is_file() and b"PRIVATE KEY-----" in file.readline(200)
    except OSError:
        return False


def _mode(path: Path, allowed: int, why: str = "others can read it") -> Finding:
    """Check that group and others have no permissions on a file beyond `allowed`."""
    try:
        found = path.stat()
    except OSError as error:
        return Finding("keys", str(path), False, str(error))
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.getuid():
        return Finding("keys", str(path), False, f"it belongs to user {found.st_uid}", f"chown {os.getuid()} {path}")
    ok = not mode & ~allowed & 0o077
    return Finding("keys", str(path), ok, f"mode {mode:03o}{'' if ok else f': {why}'}", f"chmod {allowed:03o} {path}")


def _state() -> Iterator[Finding]:
    """Check the ledger, and the pools in it that nobody closed."""
    try:
        ledger = Ledger()
        pools = ledger.pools()
    except SkywardError as error:
        yield Finding("keys", "ledger", False, str(error), "set SKYWARD_STATE to a writable folder")
        return
    yield _mode(ledger.folder, 0o700)
    yield _mode(ledger.path, 0o600)
    for path in sorted(ledger.folder.glob("keys/*")):
        yield _mode(path, 0o600)
    for pool in pools:
        if pool.alive is False:
            detail = "its driver is dead; its machines may still cost money"
            yield Finding("pools", pool.tag, False, detail, f"skyward down {pool.tag}")
        else:
            yield Finding("pools", pool.tag, True, "its driver is alive" if pool.alive else "on another computer")
