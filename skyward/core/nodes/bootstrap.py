"""Turns a bare machine with a shell into one that runs an agent: a private environment, our own code, a start.

Knows no SSH, only the Shell protocol. What runs on the machine is POSIX sh (bootstrap_scripts.py); the decisions based
on its output are made here. Everything is stored there under ``~/.cache/skyward``::

    envs/<key>-...    an environment of the driver's minor version; complete once it holds the file .complete
    code/<hash>.zip   the part of this package that runs on nodes, put on sys.path
    run/<random>/     one agent's socket, 0700

Nothing is made again the second time: one script inspects the machine and starts the agent.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import secrets
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgpack

from skyward.core import requirements
from skyward.core.errors import BootstrapFailed, ConfigError, LinkError, PackagesFailed, PythonNotFound
from skyward.core.image import Image
from skyward.core.interfaces import CommandOutput, Shell
from skyward.core.nodes.agent_process import Announcement, end_agent, end_if_cancelled
from skyward.core.nodes.bootstrap_scripts import (
    BUILD,
    DISKS,
    INSPECT,
    INSTALLING,
    LACKS,
    NEEDS_PIP,
    NO_PYTHON,
    NOEXEC,
    OFFLINE,
    PRELUDE,
    PYTHON,
    QUICK_START,
    START,
    SUPPLY,
    after,
)
from skyward.core.nodes.environment_lists import environment_key, place, plain_hosts, requirement_lists, with_paths
from skyward.core.nodes.findings import Findings
from skyward.core.nodes.host_tools import send_python, send_uv
from skyward.core.nodes.node_package import node_code, node_code_name
from skyward.core.packages import compile_ahead, installer_settings
from skyward.core.packages.fetch import pip_wheel
from skyward.core.packages.lists import PackageLists, driver_kind
from skyward.core.packages.own_wheels import fetch_or_make
from skyward.core.packages.substitutes import substitute, unavailable
from skyward.core.packages.uv_program import uv_name
from skyward.core.protocol.framing import frame
from skyward.core.system.launch import RUN
from skyward.core.system.socket_paths import LONGEST

__all__ = ["AgentAddress", "bootstrap"]

_INSPECT_LIMIT = 60.0
_BUILD_LIMIT = 1800.0  # the largest frameworks take gigabytes
_START_LIMIT = 60.0
_TAIL = 15  # lines of output shown in an error
_MIN_INODES = 32  # with fewer left, the next step would have run out of inodes
_MIN_FREE = 4 * 1024  # kB; with less left, the disk counts as full
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_APT_NAME = re.compile(r"([a-z0-9][a-z0-9+.-]+)(:[a-z0-9-]+)?(=[\w.+:~-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """Where an agent listens (for `Link.open_channel`), and the secret that both ends prove they know.

    `relay` is a command on the machine whose input and output are connected to the agent, for `StreamShell.stream`.
    `supply` installs further packages for its slots. `end` is for an agent that nobody has greeted.
    """

    address: str
    secret: bytes = field(repr=False)
    relay: str = ""
    supply: Callable[[Shell, PackageLists], Awaitable[None]] | None = None
    end: Callable[[Shell], Awaitable[None]] | None = None


async def bootstrap(
    shell: Shell,
    image: Image,
    packages: PackageLists | None = None,
    *,
    orphan_timeout: float,
    on_step: Callable[[str], None],
    python: str = "",
    prelude: str = "",
) -> AgentAddress:
    """Prepare a machine as an image says, and start an agent on it.

    Parameters
    ----------
    shell
        Runs commands on the machine.
    image
        What the machine must have.
    packages
        What its environment must have; None for what the image says.
    orphan_timeout
        Seconds without an owner after which the agent ends itself.
    on_step
        Called with a few words on what is being done.
    python
        The interpreter to use there, a name or a path; empty to search for one.
    prelude
        Lines for a login shell there that set the environment of everything that follows, agent and tasks included.

    Raises
    ------
    PackagesFailed
        The image's packages could not be installed.
    PythonNotFound
        The machine has no Python of the driver's minor version, and uv could not install one.
    BootstrapFailed
        Another step failed; the message ends with its last lines of output.
    LinkError
        The connection broke.
    """
    return await _Bootstrap(shell, image, packages, on_step, python, prelude).run(orphan_timeout)


class _Bootstrap:
    """One machine being prepared."""

    def __init__(
        self,
        shell: Shell,
        image: Image,
        packages: PackageLists | None,
        on_step: Callable[[str], None],
        python: str,
        prelude: str,
    ) -> None:
        self._shell = shell
        self._image = image
        self._on_step = on_step
        self._python = python
        self._prelude = prelude
        self._packages = packages or PackageLists(resolved=tuple(image.pip))
        self._requirements = requirement_lists(image, self._packages)
        self._code = node_code_name()
        self._found: Findings | None = None
        self._identity = secrets.token_hex(8)
        self._secret = secrets.token_bytes(32)
        self._reaches_index = True
        self._supplies = itertools.count(1)

    async def run(self, orphan_timeout: float) -> AgentAddress:
        start = {"listen": "given", "secret": self._secret, "lifeline": False, "orphan_timeout": float(orphan_timeout)}
        packed = frame(msgpack.packb(start))
        found, done = await self._inspect(packed)
        if done.stdout.rstrip().endswith("}"):
            return self._started(found, done)
        if found.missing_packages:
            await self._install_packages(found)
        if not found.env_is_complete:
            found = await self._build(found)
        if not found.has_code:
            await self._send(node_code(), f"{found.root}/code/{self._code}", "sending the code")
        values = {"root": found.root, "env": found.env, **self._agent_values}
        return self._started(
            found, await self._step("starting the agent", START, values, limit=_START_LIMIT, stdin=packed, starts=True)
        )

    @property
    def _agent_values(self) -> dict[str, str]:
        return {"code": self._code, "identity": self._identity, "longest": str(LONGEST)}

    # --- steps ---

    async def _inspect(self, start: bytes | None = None) -> tuple[Findings, CommandOutput]:
        """Look at the machine, and start the agent with this map if nothing is missing."""
        packages = {name: _package_name(name) for name in self._image.apt}
        step = "inspecting the host"
        done = await self._step(
            step,
            INSPECT if start is None else QUICK_START,
            {
                "minor": self._image.python_version,
                "key": environment_key(self._image, self._requirements, self._packages.driver),
                "packages": " ".join(packages.values()),
                "asked": self._python,
                "tool": uv_name(),
                **self._agent_values,
            },
            limit=_INSPECT_LIMIT,
            stdin=start,
            may_fail=True,
            starts=start is not None,
        )
        found = self._found = Findings.read(done.stdout, packages)
        if found is None or done.status != 0:
            self._fail(step if found is None else "starting the agent", done)
        return found, done

    async def _install_packages(self, found: Findings) -> None:
        names = " ".join(shlex.quote(name) for name in found.missing_packages)
        install = f"$sudo apt-get install -y --no-install-recommends {names}"
        # sudo drops all variables that it is not told to keep.
        proxies = ",".join(name for name in self._image.env if name.lower().endswith("_proxy"))
        kept = f"--preserve-env={proxies} " if proxies else ""
        await self._step(
            f"installing {', '.join(found.missing_packages)}",
            'exec 2>&1; sudo="env DEBIAN_FRONTEND=noninteractive LC_ALL=C"\n'
            'command -v apt-get >/dev/null || { echo "Image(apt=...) needs Debian or a derivative: no apt-get"; '
            "exit 1; }\n"
            'if [ "$(id -u)" != 0 ]; then sudo -n true || { echo "Image(apt=...) needs root, or sudo without a '
            f'password"; exit 1; }}; sudo="sudo -n {kept}$sudo"; fi\n'
            # Fetch the lists of packages only if installing fails, since they may be missing or too old.
            f"echo {INSTALLING}\n{install} || {{ $sudo apt-get update && {install}; }}",
            {},
            limit=_BUILD_LIMIT,
            stdin=b"",
            environment=self._image.env,
        )

    async def _build(self, found: Findings) -> Findings:
        """Make the environment, and return what is there then.

        If the base Python there can't install pip, the driver's own wheel is sent.
        """
        if not found.pythons and self._python:
            self._no_python(found)
        if not found.uv:
            found = self._found = replace(found, uv=await self._send_uv(found))
        if not found.pythons:
            found = self._found = await self._bring_python(found)
            if found.env_is_complete:
                return found
        step = f"making an environment with {'uv' if found.uv else found.pythons[0]}"
        values = self._installer(found, self._packages)
        done = await self._install(step, BUILD, values, self._packages)
        wheel = pip_wheel()
        if done.status == NEEDS_PIP and wheel is not None:
            values["pip_wheel"] = f"{found.root}/code/{wheel.name}"
            await self._send(wheel.read_bytes(), values["pip_wheel"], "sending pip")
            done = await self._install(step, BUILD, values, self._packages)
        if done.status == NO_PYTHON and not _is_full(done.stdout):
            self._no_python(found, done)
        if done.status != 0:
            self._fail(step, done)
        return found

    async def _send_uv(self, found: Findings) -> str:
        return await send_uv(
            self._shell,
            found.root,
            found.target(self._image.python_version),
            system=found.system,
            driver=self._packages.driver or driver_kind(),
            needed=not found.pythons,
            on_step=self._on_step,
        )

    async def _bring_python(self, found: Findings) -> Findings:
        """Have uv there install a Python or, where it can't, send one; return what is found then."""
        target = found.target(self._image.python_version)
        done = CommandOutput(NO_PYTHON, "", "")
        if found.uv:
            values = {"root": found.root, "uv": found.uv, "minor": target.python}
            step = f"installing Python {target.python} with uv"
            done = await self._step(step, PYTHON, values, limit=_BUILD_LIMIT, may_fail=True)
        if done.status != 0:
            try:
                done = await send_python(self._shell, found.root, target, self._on_step)
            except PythonNotFound as error:
                self._no_python(found, done, str(error))
            except (OSError, TimeoutError) as error:
                self._fail("sending Python", CommandOutput(1, "", str(error)), error)
        there, _ = await self._inspect()
        if not there.pythons:
            self._no_python(found, done)
        return there

    def _installer(self, found: Findings, packages: PackageLists) -> dict[str, str]:
        return {
            "root": found.root,
            "env": found.env,
            "minor": self._image.python_version,
            "uv": found.uv,
            "pythons": "\n".join(found.pythons),
            "trusted": " ".join(f"--trusted-host {shlex.quote(host)}" for host in plain_hosts(self._image)),
            "pip_wheel": "",
            "asked": self._python,
            "programs": " ".join(requirements.programs(packages.resolved)),
            "same": packages.driver if packages.exact else "",
            "settings": Path(installer_settings.__file__).read_text("utf-8"),
            "compile": Path(compile_ahead.__file__).read_text("utf-8"),
            "own": " ".join(name for name in self._image.env if name.startswith(("PIP_", "UV_"))),
            "index": "" if self._image.index is None else "given",
            "quick": "",
            "links": "",
        }

    async def supply(self, shell: Shell, packages: PackageLists) -> None:
        """Install packages that the environment lacks where the agent's slots find them, after everything else.

        Parameters
        ----------
        shell
            Runs commands on the machine; the one that was used first may be gone.
        packages
            What to install. What the environment has stays as it is.
        """
        assert self._found is not None
        self._shell = shell
        step = "installing packages that a task needs"
        values = {
            **self._installer(self._found, packages),
            "run": f"{self._found.root}/run/{self._identity}",
            "name": f"{next(self._supplies):04}",
            "pip_wheel": f"{self._found.root}/code/{wheel.name}" if (wheel := pip_wheel()) else "",
        }
        done = await self._install(step, SUPPLY, values, packages)
        if done.status != 0:
            self._fail(step, done)

    async def _install(self, step: str, script: str, values: dict[str, str], packages: PackageLists) -> CommandOutput:
        """Run a script that installs packages, from wheels that are sent if the machine reaches no index.

        Parameters
        ----------
        step
            What it does, for `on_step` and errors.
        script, values
            The script, and shell variables to set for it.
        packages
            What is to be installed.
        """
        lists = await self._send_own(packages, requirement_lists(self._image, packages))
        if self._reaches_index:
            done = await self._make(step, script, {**values, "quick": "yes"}, lists)
            if done.status in (0, NEEDS_PIP) or _is_full(done.stdout):
                return done
            if done.status != OFFLINE:
                same = self._found is not None and self._found.system == packages.driver
                own = await asyncio.to_thread(substitute, packages, done.stdout, compiled=same)
                return done if own is None else await self._install(step, script, values, own)
            self._reaches_index = False
        try:
            links = await self._send_wheels(lists.decode().splitlines())
        except PackagesFailed as error:
            # The line may just be bad; the installer's own retries are for that.
            done = await self._make(step, script, values, lists)
            if done.status == 0:
                return done
            raise PackagesFailed(
                f"{step} failed: the host reaches no package index, and here {error}{_tail(done.stdout)}"
            ) from error
        kept = [line for line in lists.splitlines(keepends=True) if not re.match(rb"\w+ --(extra-)?index-url", line)]
        return await self._make(step, script, {**values, "links": links}, b"".join(kept))

    async def _send_own(self, packages: PackageLists, lists: bytes) -> bytes:
        """Send the wheels that no index has; returns the lists with their places there."""
        found = self._found
        assert found is not None
        folder = f"{found.root}/wheels"
        for wheel in packages.wheels:
            what = f"{wheel.name} {wheel.version}"
            if not wheel.pure and found.system != packages.driver:
                raise PackagesFailed(
                    f"{what} did not come from an index, and is built for {packages.driver}; the host is "
                    f"{found.system}. Name a version that an index has for it: sky.Image(pip=[...])"
                )
            path = place(wheel, folder)
            there = shlex.quote(path)
            look = f'[ -f {there} ] || {{ mkdir -p "$(dirname {there})"; exit 1; }}'
            if (await self._shell.run(look, timeout=_INSPECT_LIMIT)).status != 0:
                await self._send(await asyncio.to_thread(Path(wheel.path).read_bytes), path, f"sending {what}")
        return with_paths(lists, packages, folder) if packages.wheels else lists

    async def _send_wheels(self, lines: Sequence[str]) -> str:
        """Send the wheels that the machine lacks; returns the folder where they are."""
        found = self._found
        assert found is not None
        self._on_step("fetching packages for the host, which reaches no package index")
        target = found.target(self._image.python_version)
        resolve = found.system != self._packages.driver
        wheels = await asyncio.to_thread(fetch_or_make, lines, target, resolve=resolve)
        folder = f"{found.root}/wheels"
        listing = await self._shell.run(
            f"mkdir -p {shlex.quote(folder)} && cd {shlex.quote(folder)} && sha256sum -- *.whl", timeout=_INSPECT_LIMIT
        )
        there = {name: digest for digest, _, name in (line.partition("  ") for line in listing.stdout.splitlines())}
        for wheel in wheels:
            data = await asyncio.to_thread(wheel.read_bytes)
            if there.get(wheel.name) != hashlib.sha256(data).hexdigest():
                await self._send(data, f"{folder}/{wheel.name}", f"sending {wheel.name}")
        return folder

    async def _make(self, step: str, script: str, values: dict[str, str], lists: bytes) -> CommandOutput:
        return await self._step(
            step,
            script,
            values,
            limit=_BUILD_LIMIT,
            stdin=lists + "".join(f"modules {path}\n" for path in self._packages.modules).encode(),
            may_fail=True,
            environment=self._image.env,
        )

    async def _send(self, data: bytes, path: str, step: str) -> None:
        self._on_step(step)
        try:
            await self._shell.put(data, path)
        except LinkError:
            raise
        except (OSError, TimeoutError) as error:
            disks = await self._shell.run(
                f"root={shlex.quote(path.rpartition('/')[0])}\n{DISKS}disks", timeout=_INSPECT_LIMIT
            )
            self._fail(step, CommandOutput(1, disks.stdout, str(error)), error)

    def _started(self, found: Findings, done: CommandOutput) -> AgentAddress:
        """Read the line that the agent has printed."""
        try:
            path, pid = Announcement.read(done)
        except ValueError:
            self._fail("starting the agent", done)
        return AgentAddress(path, self._secret, self._relay(found, path), self.supply, partial(end_agent, pid=pid))

    def _relay(self, found: Findings, address: str) -> str:
        places = (f"{found.root}/code/{self._code}", f"{found.env}/bin/python", address)
        code, python, socket = map(shlex.quote, places)
        return f"exec {python} -P -c {shlex.quote(RUN.format('skyward.worker.stdio'))} {code} {socket}"

    # --- running and failing ---

    async def _step(
        self,
        step: str,
        script: str,
        values: dict[str, str],
        *,
        limit: float,
        stdin: bytes | None = None,
        may_fail: bool = False,
        starts: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> CommandOutput:
        """Run one step's script.

        Parameters
        ----------
        step
            What it does, for `on_step` and errors.
        script, values
            The script, and shell variables to set for it.
        limit
            Seconds it may take.
        stdin
            Its standard input.
        may_fail
            Whether the caller handles a nonzero exit status.
        starts
            Whether it may start the agent, which is ended if the caller is cancelled meanwhile.
        environment
            Environment variables for everything that it starts.

        Raises
        ------
        BootstrapFailed, PackagesFailed
            It failed, or took too long.
        """
        self._on_step(step)
        exports = {name: value for name, value in (environment or {}).items() if _VARIABLE.fullmatch(name)}
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in exports.items()]
        lines += [f"{name}={shlex.quote(value)}\n" for name, value in values.items()]
        command = "".join(lines) + script
        running = self._shell.run(
            after(self._prelude, command) if self._prelude else command, input=stdin, timeout=limit
        )
        try:
            done = await (end_if_cancelled(self._shell, running) if starts else running)
        except TimeoutError as error:
            raise BootstrapFailed(
                f"{step} took more than {limit:g} s; is the host overloaded, or waiting for the network?"
            ) from error
        if done.status != 0 and not may_fail:
            self._fail(step, done)
        return done

    def _fail(self, step: str, done: CommandOutput, cause: BaseException | None = None) -> NoReturn:
        text = f"{done.stdout}\n{done.stderr}"
        if done.status == LACKS and "@lacks " in text:
            self._lacks(step, text.partition("@lacks ")[2].split()[0])
        advice = self._advice(done.status, text)
        if advice is None and INSTALLING in text.splitlines():
            missing = unavailable(text)
            advice = (
                f"the host's package index can't serve {', '.join(missing)}, and it can't be sent from here; are its "
                "name and version right?"
                if missing
                else "the packages could not be installed; are their names right, and does the host reach the index?"
            )
            failure = PackagesFailed(f"{step} failed: {advice}{_tail(text)}")
            failure.unavailable = missing
            raise failure from cause
        raise BootstrapFailed(f"{step} failed: {advice or f'exit status {done.status}'}{_tail(text)}") from cause

    def _lacks(self, step: str, program: str) -> NoReturn:
        line = requirements.programs(self._packages.resolved)[program]
        raise PackagesFailed(
            f"{step} failed: Image pip={line!r} is fetched with {program}, which the host does not have. Install it "
            f"there, or give the address of an archive (https://...)"
        )

    def _advice(self, status: int, text: str) -> str | None:
        """Say what is wrong with the machine and what to do, as far as the output shows."""
        found = self._found
        root = found.root if found else "~/.cache/skyward"
        if self._prelude and status == PRELUDE:
            return f"the prelude failed ({self._prelude.strip().splitlines()[-1]})"
        if _is_full(text):
            return _full(text) or f"the disk with {root} is full, or the user's quota there is; free some space"
        if status == NOEXEC:
            return f"programs can't run from {root} (mounted noexec?); set XDG_CACHE_HOME on the host to another disk"
        if "Read-only file system" in text or "Permission denied" in text:
            return f"no permission to write to {root}; give the user a writable home, or use another user"
        if "Exec format error" in text:
            return f"a program there is built for another architecture than {found.system if found else 'the host'}"
        if status == NEEDS_PIP:
            return (
                f"Python there can't make environments with pip: on the host, install uv or the package "
                f"python{self._image.python_version}-venv (apt install python{self._image.python_version}-venv)"
            )
        return None

    def _no_python(self, found: Findings, done: CommandOutput | None = None, here: str = "") -> NoReturn:
        minor = self._image.python_version
        if self._python:
            raise PythonNotFound(
                f"SSH python={self._python!r} "
                + (f"is not Python {minor} on the host" if found.pythons else "is not a program on the host")
                + f" ({found.system}). Give the path of a Python {minor} there, or leave out python="
                + (_tail(f"{done.stdout}\n{done.stderr}") if done else "")
            )
        others = f"; it has {', '.join(found.other_pythons)}" if found.other_pythons else ""
        tried = ", and uv there could not install it" if found.uv else ""
        tried += f"; from here, none can be sent: {here}" if here else ""
        raise PythonNotFound(
            f"no Python {minor} on the host ({found.system}){others}{tried}. Pickled functions need the same minor "
            f"version: install Python {minor} or uv there, or run the driver with a version that the host has"
            + (_tail(f"{done.stdout}\n{done.stderr}") if done else "")
        )


def _is_full(text: str) -> bool:
    return "No space left on device" in text or "Disk quota exceeded" in text


def _full(text: str) -> str | None:
    """Name the file systems that are full, from the output of `DISKS`; None if none is."""
    words = []
    for line in text.splitlines():
        if not line.startswith("@disk "):
            continue
        path, mount, free, inodes = line.removeprefix("@disk ").split("|")
        where = f"the disk with {path} (mounted at {mount})"
        if inodes.isdigit() and int(inodes) < _MIN_INODES:
            words.append(f"{where} can't hold more files ({inodes} inodes left); remove some")
        elif free.isdigit() and int(free) < _MIN_FREE:
            words.append(f"{where} is full ({int(free) // 1024} MB free); free some space")
    return " and ".join(dict.fromkeys(words)) or None


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("@")]
    return "".join(f"\n  {line}" for line in lines[-_TAIL:])


# --- what goes into an environment ----------------------------------------------------------------------------------


def _package_name(name: str) -> str:
    match = _APT_NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"Image apt={name!r} is not the name of a Debian package")
    return match.group(1)
