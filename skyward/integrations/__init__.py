"""Other libraries on a pool, under their public names. They are imported on first use (PEP 562)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyward.joblib_ext.backend import SkywardBackend as SkywardBackend
    from skyward.joblib_ext.pools import JoblibPool as JoblibPool
    from skyward.joblib_ext.pools import ScikitLearnPool as ScikitLearnPool
    from skyward.joblib_ext.pools import sklearn_backend as sklearn_backend

__all__ = ["JoblibPool", "ScikitLearnPool", "SkywardBackend", "sklearn_backend"]


def _look_up(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("skyward.integrations.joblib"), name)
    globals()[name] = value  # cached: the next lookup does not call this function
    return value


if not TYPE_CHECKING:  # a type checker that saw it would accept any name
    __getattr__ = _look_up


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
