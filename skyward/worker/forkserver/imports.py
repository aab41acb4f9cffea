"""What tasks import: slots report it to the fork server, and an heir imports it before slots are forked from the heir.

Importing a module ahead must have the same effect as importing it in the slot. So `import_ahead` imports only what is
installed (a user's own modules may be edited at any time), and gives up if a module changes the process in ways that a
fork does not inherit or would share: threads, open files, shared memory, signal handlers. The slots' environment
variables must also have been the same, since modules read them.
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
from skyward.worker import arrivals

__all__ = ["CAN_CHECK", "Imports", "Unfit", "import_ahead", "parse"]

CAN_CHECK = sys.platform == "linux"
"""Whether this system shows what an import has changed in the process; elsewhere nothing is imported ahead."""

_MANY = 400  # names in a message
_STATE = ("signal handlers", "open files", "shared memory", "the working directory")
_HARMLESS = {"/dev/null", "/dev/random", "/dev/urandom"}


class Unfit(Exception):
    """No more slots can be forked from this process."""


class Imports:
    """Reports a slot's imports. Made in the fork server, so that slots share what they compare with.

    Parameters
    ----------
    fd
        A non-blocking datagram socket to the fork server.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._stopped = False
        self.renew()

    def __repr__(self) -> str:
        return f"<Imports, {self._reported} modules reported>"

    def stop(self) -> None:
        """Stop reporting."""
        self._stopped = True

    def renew(self) -> None:
        """Take what is imported now as common to all slots."""
        self._reported = len(sys.modules)
        self._variables = dict(os.environ)

    def report(self) -> None:
        """Report what was imported since the last call. If nothing was, this only compares two numbers."""
        if len(sys.modules) == self._reported or self._stopped:
            return
        names = list(sys.modules)  # in import order
        self._reported = min(self._reported, len(names))
        changed = _changed(self._variables)
        with contextlib.suppress(OSError):  # the fork server is busy: try again after the next task
            while new := names[self._reported : self._reported + _MANY]:
                os.write(self.fd, msgpack.packb([new, changed], unicode_errors="surrogatepass"))
                self._reported += len(new)


def _changed(before: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables that have changed, except for those that skyward sets."""
    if os.environ == before:
        return {}
    both = before.keys() | os.environ.keys()
    names = [name for name in both if not name.startswith("SKYWARD_") and name not in THREAD_VARIABLES]
    return {name: os.environ.get(name) for name in names if os.environ.get(name) != before.get(name)}


def parse(data: bytes) -> tuple[list[str], dict[str, str | None]]:
    """Parse what `Imports.report` wrote: modules, and changed variables; ValueError if it is invalid."""
    names, changed = msgpack.unpackb(data, unicode_errors="surrogatepass")
    if not all(isinstance(name, str) for name in [*names, *changed]):
        raise ValueError("not names")
    return list(names), dict(changed)


def import_ahead(names: Sequence[str], variables: Mapping[str, str | None], trying: Callable[[int], None]) -> None:
    """Import those of these modules that are installed.

    Parameters
    ----------
    names
        Modules in the order in which slots imported them.
    variables
        Environment variables that had changed by then.
    trying
        Called with the index of a name before it is imported, and with ``len(names)`` at the end, so that the fork
        server knows which module hangs, crashes, or is unfit.

    Raises
    ------
    Unfit
        A module has changed the process as it must not; the process must end.
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
            with contextlib.suppress(Exception):  # the slot reports it; or another module creates it
                importlib.import_module(name)
    _check(before, known, folders)
    trying(len(names))
    for name, value in variables.items():
        if os.environ.get(name) != value:
            raise Unfit(f"the environment variable {name} was different when tasks imported")


def _folders() -> tuple[str, ...]:
    """Return the folders of installed modules."""
    found = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += site.getsitepackages()
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    found.append(os.environ.get(arrivals.FOLDER, found[0]))
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
    """Whether it is one of the user's files."""
    place = getattr(module, "__file__", None)
    return isinstance(place, str) and not place.startswith(folders)


def _state() -> tuple[object, ...]:
    handlers = [signal.getsignal(number) for number in signal.Signals]
    opened = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            if (name := str(fd.readlink())) not in _HARMLESS:
                opened.add((fd.name, name))
    with Path("/proc/self/maps").open() as maps:
        shared = [line.split()[0] for line in maps if line.split()[1] == "rw-s"]
    return handlers, opened, shared, os.getcwd()


def _check(before: tuple[object, ...], known: set[str], folders: tuple[str, ...]) -> None:
    """Compare the process with its state before the imports."""
    for what, was, now in zip(_STATE, before, _state(), strict=True):
        if was != now:
            raise Unfit(f"an import has changed {what}: {now!r} instead of {was!r}")
    if _threads() > 1:
        # A library may end its threads before a fork, as OpenBLAS does, and start them again when it needs them.
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        if _threads() > 1:
            raise Unfit("an import has started threads")
    own = [name for name, module in list(sys.modules.items()) if name not in known and _is_own(module, folders)]
    if own:
        raise Unfit(f"an import has imported {own[0]}, which is not an installed module")


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - pathlib is slower
