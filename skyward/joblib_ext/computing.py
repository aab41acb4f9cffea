"""What computes a cached function's result in a slot, whose node need not have joblib."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

from skyward.core.labels import label

__all__ = ["Computing"]


class Computing:
    """A function that `joblib.Memory` caches, without its cache: it prints what joblib prints when it computes.

    Parameters
    ----------
    function
        The function itself.
    verbose
        As for `joblib.Memory`.
    """

    __slots__ = ("__weakref__", "function", "verbose")

    def __init__(self, function: Callable[..., Any], verbose: int) -> None:
        self.function = function
        self.verbose = verbose

    def __repr__(self) -> str:
        return f"<Computing {self.label}>"

    def __reduce__(self) -> Any:
        return Computing, (self.function, self.verbose)

    @property
    def label(self) -> str:
        """Its name in messages."""
        return label(self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        if self.verbose <= 0:
            return self.function(*args, **kwargs)
        with contextlib.suppress(ImportError):  # the node may lack it
            from joblib.func_inspect import format_call  # noqa: PLC0415 - see above

            sys.stdout.write(f"{format_call(self.function, args, kwargs)}\n")
        began = time.time()
        result = self.function(*args, **kwargs)
        with contextlib.suppress(ImportError):
            from joblib.func_inspect import get_func_name  # noqa: PLC0415 - as above
            from joblib.logger import format_time  # noqa: PLC0415 - as above

            text = f"{get_func_name(self.function)[1]} - {format_time(time.time() - began)}"
            sys.stdout.write(f"{text:_>80}\n")
        return result
