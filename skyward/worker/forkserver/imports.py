"""What tasks import: slots tell the fork server, and a process that slots can be forked from imports it before they do.

To import a module ahead must not differ from importing it in the slot. So `learn` takes only what is installed (a
user's own modules may be edited at any time), and gives up on a module that does to the process what a fork does not
carry over or would share: threads, open files, shared memory, handlers of signals. And the slots' variables must have
been the same, since modules look at them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import site
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import msgpack

from skyward.core.protocol.messages import THREAD_VARIABLES

__all__ = ["Imports", "Unfit", "learn", "parse"]

_MANY = 400  # names in a message
_HARMLESS = {"/dev/null", "/dev/random", "/dev/urandom"}


class Unfit(Exception):
    """No slot can be forked from this process any more."""


class Imports:
    """The slots' half. Made in the fork server, so that slots have in common what they compare with.

    Parameters
    ----------
    fd
        A datagram socket to the fork server, which does not block.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.renew()

    def __repr__(self) -> str:
        return f"<Imports, {self._told} modules told>"

    def renew(self) -> None:
        """What is here now is in each slot."""
        self._told = len(sys.modules)
        self._variables = dict(os.environ)

    def tell(self) -> None:
        """Tell what was imported since the last time. Where nothing was, that is a comparison of two numbers."""
        if len(sys.modules) == self._told:
            return
        names = list(sys.modules)  # in the order of their imports
        self._told = min(self._told, len(names))
        changed = _changed(self._variables)
        with contextlib.suppress(OSError):  # the fork server is busy: after the next task, then
            while new := names[self._told : self._told + _MANY]:
                os.write(self.fd, msgpack.packb([new, changed], unicode_errors="surrogatepass"))
                self._told += len(new)


def _changed(before: Mapping[str, str]) -> dict[str, str | None]:
    """The variables that are not as they were, but for those that we set ourselves."""
    if os.environ == before:
        return {}
    both = before.keys() | os.environ.keys()
    names = [name for name in both if not name.startswith("SKYWARD_") and name not in THREAD_VARIABLES]
    return {name: os.environ.get(name) for name in names if os.environ.get(name) != before.get(name)}


def parse(data: bytes) -> tuple[list[str], dict[str, str | None]]:
    """What `Imports.tell` wrote: modules, and changed variables; ValueError if that is not what it is."""
    names, changed = msgpack.unpackb(data, unicode_errors="surrogatepass")
    if not all(isinstance(name, str) for name in [*names, *changed]):
        raise ValueError("not names")
    return list(names), dict(changed)


def learn(names: Sequence[str], variables: Mapping[str, str | None], trying: Callable[[int], None]) -> None:
    """Import what is installed of these modules.

    Parameters
    ----------
    names
        In the order in which slots imported them.
    variables
        What had changed of the environment when they had.
    trying
        Told the index of a name before it is imported, and ``len(names)`` at the end: so who waits knows what it is
        that hangs, crashes, or is unfit.

    Raises
    ------
    Unfit
        A module has done what it must not; the process is to be ended.
    """
    folders = _folders()
    before, known = _state(), set(sys.modules)
    roots: dict[str, bool] = {}
    for index, name in enumerate(names):
        root = name.partition(".")[0]
        if root not in roots:
            _check(before, known, folders)
            trying(index)
            roots[root] = _is_installed(root, folders)
        if roots[root] and name not in sys.modules:
            with contextlib.suppress(Exception):  # it is the slot's to say so; or one that others made, not an import
                importlib.import_module(name)
    _check(before, known, folders)
    trying(len(names))
    for name, value in variables.items():
        if os.environ.get(name) != value:
            raise Unfit(f"the variable {name} was another one when tasks imported")


def _folders() -> tuple[str, ...]:
    """Where installed modules lie."""
    found = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += site.getsitepackages()
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    return tuple(os.path.join(folder, "") for folder in found)


def _is_installed(root: str, folders: tuple[str, ...]) -> bool:
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, AttributeError, ValueError):
        return False
    if spec is None:
        return False
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or [])
    return all(place is not None and place.startswith(folders) for place in places)


def _is_own(module: ModuleType, folders: tuple[str, ...]) -> bool:
    """Whether it is a file of the user's."""
    place = getattr(module, "__file__", None)
    return isinstance(place, str) and not place.startswith(folders)


def _state() -> tuple[object, ...]:
    handlers = [signal.getsignal(number) for number in signal.Signals]
    opened = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the list itself
            if (name := str(fd.readlink())) not in _HARMLESS:
                opened.add((fd.name, name))
    with Path("/proc/self/maps").open() as maps:
        shared = [line.split()[0] for line in maps if line.split()[1] == "rw-s"]
    return handlers, opened, shared, os.getcwd()


def _check(before: tuple[object, ...], known: set[str], folders: tuple[str, ...]) -> None:
    """Compare with how things were before the imports."""
    for what, was, now in zip(("signals", "open files", "shared memory", "the folder"), before, _state(), strict=True):
        if was != now:
            raise Unfit(f"an import has changed {what}: {now!r}, and not {was!r}")
    if _threads() > 1:
        # Of a library that ends its threads before a fork, as OpenBLAS does, and makes them again when it needs them.
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        if _threads() > 1:
            raise Unfit("an import has started threads")
    own = [name for name, module in list(sys.modules.items()) if name not in known and _is_own(module, folders)]
    if own:
        raise Unfit(f"an import has led to {own[0]}, which is no installed module")


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - that is slower
