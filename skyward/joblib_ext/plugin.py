"""The plugins `sky.plugins.joblib()` and `sky.plugins.sklearn()`: the nodes' image, and the backend in the block."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from skyward.core.errors import ConfigError
from skyward.core.image import Image
from skyward.core.interfaces import OpenPool, Plugin
from skyward.core.pool import Compute

__all__ = ["JoblibPlugin", "SklearnPlugin"]

_MODULES = {"scikit-learn": "sklearn"}  # packages whose module has a different name
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")

# joblib sets this when it is imported, which a pool does while its nodes start: then they have it, too.
os.environ.setdefault("KMP_INIT_AT_FORK", "FALSE")


@dataclass(frozen=True)
class JoblibPlugin(Plugin):
    """Runs joblib's ``Parallel`` on the pool.

    Parameters
    ----------
    version
        Version of joblib on the nodes; None for the driver's.
    """

    version: str | None = None

    def transform_image(self, image: Image, *, driver_environment: bool) -> Image:
        """Return the image with joblib."""
        wanted = {"joblib": self.version}
        return _with(image, wanted, ("joblib", "skyward.joblib_ext.node"), driver_environment)

    def around_client(self, pool: OpenPool) -> AbstractContextManager[object]:
        """Make the pool joblib's backend."""
        from skyward.joblib_ext.activation import activated  # noqa: PLC0415 - see `_with`

        assert isinstance(pool, Compute)
        return activated(pool)

    def around_worker(self) -> str:
        """Return what lets tasks name the backend."""
        return "skyward.joblib_ext.node:registered"


@dataclass(frozen=True)
class SklearnPlugin(JoblibPlugin):
    """Runs scikit-learn on the pool.

    Parameters
    ----------
    version
        Version of scikit-learn on the nodes; None for the driver's.
    joblib_version
        Version of joblib on the nodes; None for the driver's.
    """

    joblib_version: str | None = None

    def transform_image(self, image: Image, *, driver_environment: bool) -> Image:
        """Return the image with scikit-learn, and the driver's numpy and scipy, since arrays are pickled by them."""
        wanted = {"scikit-learn": self.version, "joblib": self.joblib_version, "numpy": None, "scipy": None}
        preload = ("joblib", "skyward.joblib_ext.node", "numpy", "scipy.sparse", "sklearn.model_selection")
        return _with(image, wanted, preload, driver_environment)


def _with(image: Image, wanted: dict[str, str | None], preload: Sequence[str], driver_environment: bool) -> Image:
    """Return an image with packages and preloaded modules.

    Parameters
    ----------
    image
        The user's.
    wanted
        Packages and their versions; None for the driver's.
    preload
        Modules that nodes load before any task needs them.
    driver_environment
        Whether nodes use the driver's environment, so that nothing is installed.

    Raises
    ------
    ConfigError
        A package is missing, or has another version, in the driver's environment.
    """
    # The block needs it, and nodes have begun to start by now.
    from skyward.joblib_ext import activation  # noqa: F401, PLC0415

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
    """Return the normalized package name of a requirement."""
    match = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", match[1]).lower() if match else ""


def _installed(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    from importlib import metadata  # noqa: PLC0415 - 3 MB, which a pool on this machine rarely needs

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _version(package: str) -> str:
    """Return the driver's version of a package, for nodes to install."""
    version = _installed(package)
    if version is None:
        raise ConfigError(
            f"{package} is not installed here, so the nodes can't have the same version: pip install {package}, or "
            "give the plugin a version"
        )
    return version


def _check_installed(package: str, version: str | None) -> None:
    """Raise ConfigError unless the driver's environment has the package, in that version."""
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
