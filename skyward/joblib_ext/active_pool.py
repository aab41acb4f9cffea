"""Makes open pools known to joblib: registers the backend's name, and has joblib's default backend warn meanwhile.

joblib is not imported for that: if the program has not loaded it, a finder in `sys.meta_path` waits until it does.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from skyward.joblib_ext import open_pools

if TYPE_CHECKING:
    from skyward.core.pool import Compute

__all__ = ["entered"]


@contextlib.contextmanager
def entered(pool: Compute, *, plugged: bool = False) -> Iterator[None]:
    """Let joblib use a pool under the name ``"skyward"`` inside the block; the front end of every pool.

    Parameters
    ----------
    pool
        An open pool.
    plugged
        Whether it is joblib's backend in this thread; see `open_pools.entered`.
    """
    with open_pools.entered(pool, plugged=plugged, on_last=_withdraw):
        del pool  # see open_pools.entered
        _announce()
        yield


def _announce() -> None:
    """Register the backends with joblib; if joblib is not loaded, once it is."""
    if "joblib.parallel" not in sys.modules:
        if _watch not in sys.meta_path:
            sys.meta_path.insert(0, _watch)
        return
    from skyward.joblib_ext import default_backend  # noqa: PLC0415 - it imports joblib, and registers our backend

    if open_pools.is_any_open():
        default_backend.install()


def _withdraw() -> None:
    """Undo all of it when the last pool ends."""
    with contextlib.suppress(ValueError):
        sys.meta_path.remove(_watch)
    if (default := sys.modules.get("skyward.joblib_ext.default_backend")) is not None:
        default.remove()


class _Watch:
    """A finder that finds no module itself, but notices when joblib is imported."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if name != "joblib.parallel":
            return None
        sys.meta_path.remove(_watch)
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next(filter(None, found), None)
        loader: Any = spec and spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                loader.exec_module = execute
                execute(module)
                _announce()

            loader.exec_module = exec_module
        return spec


_watch: Any = _Watch()
