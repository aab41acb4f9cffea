"""Changes to a pool: ``sky.Compute(plugins=[sky.plugins.joblib()])``.

Each function here makes a frozen value. Others write their own by subclassing `sky.Plugin`.
"""

from __future__ import annotations

from skyward.core.interfaces import Plugin
from skyward.joblib_ext.plugin import JoblibPlugin, SklearnPlugin

__all__ = ["joblib", "sklearn"]


def joblib(version: str | None = None) -> Plugin:
    """Let joblib's ``Parallel(n_jobs=-1)`` use all slots of the pool inside its block.

    Parameters
    ----------
    version
        Version of joblib on the nodes, such as ``"1.4.0"``; None for the driver's.
    """
    return JoblibPlugin(version)


def sklearn(version: str | None = None) -> Plugin:
    """Let scikit-learn's ``n_jobs=-1`` use all slots of the pool inside its block, with scikit-learn on the nodes.

    Parameters
    ----------
    version
        Version of scikit-learn on the nodes, such as ``"1.5.2"``; None for the driver's.
    """
    return SklearnPlugin(version)
