"""Pools that make themselves the backend of joblib or scikit-learn, and a context manager for other pools."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from skyward.core.image import Image
from skyward.core.interfaces import Plugin, Provider
from skyward.core.pool import Compute
from skyward.core.spec import Allocation
from skyward.core.volumes import Volume
from skyward.joblib_ext.activation import activated
from skyward.joblib_ext.backend import SkywardBackend
from skyward.joblib_ext.plugin import JoblibPlugin, SklearnPlugin

__all__ = ["JoblibPool", "ScikitLearnPool", "sklearn_backend"]


class JoblibPool(Compute):
    """A pool whose block sends ``Parallel(n_jobs=-1)`` to its machines; `Compute` with the joblib plugin.

    Parameters
    ----------
    provider
        A provider or its name; a list of several is tried in order.
    nodes
        How many machines, or ``(min, max)``; see `Compute`.
    concurrency
        How many tasks run at once on each machine.
    machine
        Type of the machines.
    image
        Environment of the machines; joblib is added.
    accelerator, cpu, memory
        What each machine must have.
    volume
        Storage to mount on the machines.
    allocation
        Whether to rent spot machines, which the provider may preempt; see `Compute`.
    timeout
        Maximum running time of one task, in seconds; None for no limit.
    joblib_version
        Version of joblib on the machines; None for the driver's.
    results, trusted
        Which results are accepted; see `Compute`.
    console
        Whether to show a live line and a summary if there is a terminal.

    Examples
    --------
    >>> from joblib import Parallel, delayed
    >>> with JoblibPool(sky.Local(), nodes=2, concurrency=2) as pool:  # doctest: +SKIP
    ...     Parallel(n_jobs=-1)(delayed(pow)(i, 2) for i in range(100))
    """

    def __init__(
        self,
        provider: Provider | str | Sequence[Provider | str],
        nodes: int | tuple[int, int] = 1,
        concurrency: int = 1,
        machine: str | None = None,
        image: Image | None = None,
        accelerator: str | None = None,
        cpu: int | None = None,
        memory: int | str | None = None,
        volume: Sequence[Volume] | Volume = (),
        allocation: Allocation = "spot-if-available",
        timeout: float | None = 3600,
        joblib_version: str | None = None,
        *,
        results: Literal["data", "any"] | None = None,
        trusted: Sequence[Any] = (),
        console: bool = True,
    ) -> None:
        super().__init__(
            provider,
            nodes,
            concurrency=concurrency,
            machine=machine,
            image=image,
            accelerator=accelerator,
            cpu=cpu,
            memory=memory,
            volume=volume,
            allocation=allocation,
            timeout=timeout,
            plugins=[self._plugin(joblib_version)],
            results=results,
            trusted=trusted,
            console=console,
        )

    def _plugin(self, joblib_version: str | None) -> Plugin:
        return JoblibPlugin(joblib_version)


class ScikitLearnPool(JoblibPool):
    """A pool whose block sends scikit-learn's ``n_jobs=-1`` to its machines; `Compute` with the sklearn plugin.

    Parameters
    ----------
    provider, nodes, concurrency, machine, image, accelerator, cpu, memory, volume, allocation, timeout, joblib_version
        As for `JoblibPool`.
    sklearn_version
        Version of scikit-learn on the machines; None for the driver's.
    results, trusted, console
        As for `JoblibPool`.
    """

    def __init__(
        self,
        provider: Provider | str | Sequence[Provider | str],
        nodes: int | tuple[int, int] = 1,
        concurrency: int = 1,
        machine: str | None = None,
        image: Image | None = None,
        accelerator: str | None = None,
        cpu: int | None = None,
        memory: int | str | None = None,
        volume: Sequence[Volume] | Volume = (),
        allocation: Allocation = "spot-if-available",
        timeout: float | None = 3600,
        joblib_version: str | None = None,
        sklearn_version: str | None = None,
        *,
        results: Literal["data", "any"] | None = None,
        trusted: Sequence[Any] = (),
        console: bool = True,
    ) -> None:
        self._sklearn_version = sklearn_version
        super().__init__(
            provider,
            nodes,
            concurrency,
            machine,
            image,
            accelerator,
            cpu,
            memory,
            volume,
            allocation,
            timeout,
            joblib_version,
            results=results,
            trusted=trusted,
            console=console,
        )

    def _plugin(self, joblib_version: str | None) -> Plugin:
        return SklearnPlugin(self._sklearn_version, joblib_version)


@contextlib.contextmanager
def sklearn_backend(pool: Compute) -> Iterator[SkywardBackend]:
    """Make an open pool the backend of joblib, and thus of scikit-learn, inside the block.

    Parameters
    ----------
    pool
        An open pool whose machines have scikit-learn and joblib.

    Raises
    ------
    PoolNotActive
        The pool is not open.
    """
    _ = pool.total_slots  # raises if it is not open
    with activated(pool) as backend:
        yield backend
