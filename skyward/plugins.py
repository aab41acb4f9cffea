"""Changes to a pool: ``sky.Compute(plugins=[sky.plugins.joblib()])``.

Each function returns a frozen value. To write your own plugin, subclass `sky.Plugin`.
"""

from __future__ import annotations

from skyward.core.interfaces import Plugin
from skyward.joblib_ext.plugin import JoblibPlugin, SklearnPlugin

__all__ = ["joblib", "sklearn"]


def joblib(version: str | None = None) -> Plugin:
    """Make joblib's ``Parallel(n_jobs=-1)`` use all slots of the pool inside its block.

    Parameters
    ----------
    version
        Version of joblib on the nodes, such as ``"1.4.0"``; None means the driver's.
    """
    return JoblibPlugin(version)


def sklearn(version: str | None = None) -> Plugin:
    """Make scikit-learn's ``n_jobs=-1`` use all slots of the pool inside its block, and install it on the nodes.

    Parameters
    ----------
    version
        Version of scikit-learn on the nodes, such as ``"1.5.2"``; None means the driver's.
    """
    return SklearnPlugin(version)
