"""What `sky.plugins.joblib()` and `sky.plugins.sklearn()` make: the nodes' image, and the backend in the block."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from joblib import parallel_config
from joblib.parallel import get_active_backend

from skyward.core.errors import ConfigError
from skyward.core.interfaces import OpenPool, Plugin
from skyward.core.pool import Compute
from skyward.core.spec import Image
from skyward.joblib_ext import active_pool
from skyward.joblib_ext.backend import SkywardBackend

__all__ = ["JoblibPlugin", "SklearnPlugin", "activated"]

_MODULES = {"scikit-learn": "sklearn"}  # of packages whose module has another name
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


@contextlib.contextmanager
def activated(pool: Compute) -> Iterator[SkywardBackend]:
    """Make an open pool joblib's backend in this thread, and put back what was there.

    ``n_jobs`` is left alone, so that None still means 1.
    """
    SkywardBackend.unwind()
    thread, before = threading.current_thread(), get_active_backend()[0]
    backend = SkywardBackend(pool)
    with active_pool.entered(pool, plugged=True):
        config = parallel_config(backend=backend)
        try:
            yield backend
        finally:
            if threading.current_thread() is thread and get_active_backend()[0] is backend:
                config.unregister()
                SkywardBackend.unwind()
            else:
                # joblib's configuration is per thread and a stack. From another thread, or out of order, it can't be
                # taken back yet; but what is left of it can do what was there before.
                backend.retire(before, config.unregister)


@dataclass(frozen=True)
class JoblibPlugin(Plugin):
    """joblib's ``Parallel`` on the pool.

    Parameters
    ----------
    version
        Of joblib on the nodes; None for the driver's.
    """

    version: str | None = None

    def transform_image(self, image: Image, *, driver_environment: bool) -> Image:
        """The image with joblib."""
        wanted = {"joblib": self.version}
        return _with(image, wanted, ("joblib", "skyward.joblib_ext.node"), driver_environment)

    def around_client(self, pool: OpenPool) -> AbstractContextManager[object]:
        """Make the pool joblib's backend."""
        assert isinstance(pool, Compute)
        return activated(pool)

    def around_worker(self) -> str:
        """Let tasks name the backend too."""
        return "skyward.joblib_ext.node:registered"


@dataclass(frozen=True)
class SklearnPlugin(JoblibPlugin):
    """scikit-learn on the pool.

    Parameters
    ----------
    version
        Of scikit-learn on the nodes; None for the driver's.
    joblib_version
        Of joblib on the nodes; None for the driver's.
    """

    joblib_version: str | None = None

    def transform_image(self, image: Image, *, driver_environment: bool) -> Image:
        """The image with scikit-learn, and with the numpy and scipy of the driver, since arrays are pickled by them."""
        wanted = {"scikit-learn": self.version, "joblib": self.joblib_version, "numpy": None, "scipy": None}
        preload = ("joblib", "skyward.joblib_ext.node", "numpy", "scipy.sparse", "sklearn.model_selection")
        return _with(image, wanted, preload, driver_environment)


def _with(image: Image, wanted: dict[str, str | None], preload: Sequence[str], driver_environment: bool) -> Image:
    """An image with packages of these versions, and with modules that are loaded before any task needs them."""
    pip = list(image.pip)
    named = {_package(requirement) for requirement in pip}
    for package, version in wanted.items():
        if driver_environment:
            _check_installed(package, version)
        elif package not in named:
            pip.append(f"{package}=={version or _version(package)}")
    modules = [*image.preload, *(module for module in preload if module not in image.preload)]
    return replace(image, pip=pip, preload=modules)


def _package(requirement: str) -> str:
    """The normalized name of the package that a requirement asks for."""
    match = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", match[1]).lower() if match else ""


def _installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    from importlib import metadata  # noqa: PLC0415 - 3 MB, of which a pool on this machine mostly has no use

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _version(package: str) -> str:
    """The version that nodes shall have."""
    version = _installed(package)
    if version is None:
        raise ConfigError(
            f"{package} is not installed here, so the nodes can't have the same version: pip install {package}, or "
            "give the plugin a version"
        )
    return version


def _check_installed(package: str, version: str | None) -> None:
    """Refuse to go on where nothing is installed for nodes and the driver does not have what they need."""
    if importlib.util.find_spec(_MODULES.get(package, package)) is None:
        asked = package if version is None else f"{package}=={version}"
        raise ConfigError(
            f"nodes on this machine use this environment, and {package} is not installed in it: pip install {asked}"
        )
    if version is not None and version != (here := _installed(package)):
        raise ConfigError(
            f"nodes on this machine use this environment, which has {package} {here} and not {version}: "
            f"pip install {package}=={version}, or leave the version out"
        )
