"""Plans nodes' packages from the driver's environment, for `Image(sync="auto")` and ``"all"``."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Collection, Iterable, Sequence

from packaging.utils import canonicalize_name
from platformdirs import user_cache_path

from skyward.core.errors import ConfigError
from skyward.core.image import Image
from skyward.core.packages.builds import Builds
from skyward.core.packages.closure import INSTALLERS, OWN, TOOLS, Apart, Closure, Request, close, parse
from skyward.core.packages.installed import Installed
from skyward.core.packages.lists import PackageLists, Wheel, driver_kind
from skyward.core.packages.rebuild import rebuild
from skyward.core.packages.references import find_references
from skyward.core.requirements import NEEDED

__all__ = ["PackagePlan"]


class PackagePlan:
    """What one pool's nodes install, and what they can get later.

    Parameters
    ----------
    image
        The pool's, as its plugins have changed it.
    main
        The driver's ``__main__``; None for this process's.
    installed
        The driver's distributions; None to read them.

    Raises
    ------
    ConfigError
        The image's lock has another version than the driver of something that tasks need.
    """

    def __init__(self, image: Image, main: types.ModuleType | None = None, installed: Installed | None = None) -> None:
        self._image = image
        self._installed = Installed() if installed is None else installed
        self.names = _names(image, sys.modules["__main__"] if main is None else main, self._installed)
        """Distributions that tasks need, apart from dependencies."""
        self._used = _used(self._installed)
        _check_locks(image, self.names, self._installed)
        self.closure = self._close(self.names, image.pip)

    def __repr__(self) -> str:
        return f"<PackagePlan: {len(self.closure.exact)} exact, {len(self.closure.resolved)} to resolve>"

    def _close(self, names: Sequence[str], lines: Sequence[str]) -> Closure:
        return close(Request(names, lines, self._image.constraints, NEEDED, self._used), self._installed)

    def late(self, module: str) -> PackageLists | None:
        """What to install in addition where a module is missing; None if no index is known to have it.

        Parameters
        ----------
        module
            Its full name, or the beginning of it.
        """
        names = set(self._installed.owners(module)) - TOOLS - {OWN}
        more = self._close([*self.names, *names], self._image.pip)
        exact = tuple(line for line in more.exact if line not in self.closure.exact)
        resolved = tuple(line for line in more.resolved if line not in self.closure.resolved)
        wheels = self._wheels(one for one in more.apart if one not in self.closure.apart)
        if not (exact or resolved or wheels):
            return None
        return PackageLists(exact, resolved, driver_kind(), wheels)

    @property
    def summary(self) -> str:
        """How many distributions nodes get, apart from those that they need anyway; empty for none."""
        lists = self.lists
        count = len({*lists.exact, *lists.resolved}) - sum(line.partition("==")[0] in NEEDED for line in lists.exact)
        said = [f"{count} packages" if count > 1 else "1 package"] if count else []
        sent = len(lists.wheels)
        if sent:
            said.append(f"{sent} of yours that no index has")
        return " and ".join(said)

    def _wheels(self, apart: Iterable[Apart]) -> tuple[Wheel, ...]:
        """Wheels of what was installed here from a URL or a file; editable installs are the user's own code."""
        folder = user_cache_path("skyward") / "rebuilt"
        return tuple(
            rebuild(self._installed.raw(canonicalize_name(one.name)), folder) for one in apart if one.why == "url"
        )

    @functools.cached_property
    def lists(self) -> PackageLists:
        """What to install on each node."""
        return self._lists(self.closure, self._named)

    def builds(self, compiled: Callable[[], Sequence[str]]) -> Builds:
        """What there are builds of for which machines.

        Parameters
        ----------
        compiled
            Returns the names of the user's own modules that exist in compiled form only.
        """
        return Builds(self._image, self.lists, compiled)

    @property
    def _named(self) -> PackageLists | None:
        """What the image and its plugins name, without what was found in the program; None if that is all there is."""
        named = self._close([], self._image.pip)
        return None if self._image.sync == "all" or named == self.closure else self._lists(named)

    def _lists(self, closure: Closure, named: PackageLists | None = None) -> PackageLists:
        wheels, modules = self._wheels(closure.apart), tuple(self._installed.loaded())
        return PackageLists(closure.exact, closure.resolved, driver_kind(), wheels, named, modules)


def _names(image: Image, main: types.ModuleType, installed: Installed) -> list[str]:
    if image.sync == "all":
        return sorted(set(installed) - INSTALLERS - {OWN})
    found = find_references(main, installed.is_local)
    names = {name for module in (*found.modules, *image.preload) for name in installed.owners(module)}
    names |= {name for file in found.files if (name := installed.editable_owner(file)) is not None}
    return sorted(names - TOOLS - {OWN})


def _used(installed: Installed) -> frozenset[str]:
    """Distributions that are loaded here, except those that we may have loaded for ourselves."""
    ours = {OWN}
    todo = [OWN]
    while todo and OWN in installed:
        parsed = [one for line in installed[todo.pop()].requires if (one := parse(line)) is not None]
        needs = {canonicalize_name(one.name) for one in parsed if "extra" not in str(one.marker)}
        todo += (needs & installed.keys()) - ours
        ours |= needs
    roots = {name.partition(".")[0] for name in sys.modules}
    return frozenset(name for root in roots for name in installed.owners(root)) - ours


def _check_locks(image: Image, names: Collection[str], installed: Installed) -> None:
    """Refuse a file with another version than the driver's of what tasks need: their pickles would not fit."""
    for line in image.pip:
        asked = parse(line) if line in image.locked else None
        if asked is None or asked.url or not asked.specifier:
            continue
        one = installed.get(canonicalize_name(asked.name))
        if one is not None and one.key in names and not asked.specifier.contains(one.version, prereleases=True):
            raise ConfigError(
                f"Image requirements: the file says {asked.name}{asked.specifier}, but this program uses {one.name} "
                f"{one.version}, and what it sends was made with that. Install its versions here too, or give "
                'Image(sync="none") to use the file alone'
            )
