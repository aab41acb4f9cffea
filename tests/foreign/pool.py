"""The pool that the tests of joblib and scikit-learn use, by environment variables.

``FOREIGN_PROVIDER`` is ``local`` or ``ssh``; for the latter ``FOREIGN_SSH`` holds the arguments of
`sky.SSH` and ``FOREIGN_IMAGE`` those of `sky.Image`, as JSON.
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import skyward as sky
from skyward.core.interfaces import OpenPool
from skyward.core.pool import Compute
from skyward.joblib_ext import active_pool
from skyward.joblib_ext.plugin import JoblibPlugin

IS_LOCAL = os.environ.get("FOREIGN_PROVIDER", "local") == "local"


@dataclass(frozen=True)
class Quiet(JoblibPlugin):
    """The joblib plugin, except that joblib's configuration stays as it is: the tests look at it."""

    def around_client(self, pool: OpenPool) -> AbstractContextManager[object]:
        assert isinstance(pool, Compute)
        return active_pool.entered(pool)


def make() -> Compute:
    """Two nodes with two slots each, not yet entered."""
    provider = sky.Local() if IS_LOCAL else sky.SSH(**json.loads(os.environ["FOREIGN_SSH"]))
    image = sky.Image(**json.loads(os.environ.get("FOREIGN_IMAGE", "{}")))
    worker = sky.Worker(concurrency=2)
    results = os.environ.get("FOREIGN_RESULTS")
    return sky.Compute(provider, nodes=2, worker=worker, image=image, plugins=[Quiet()], results=results, console=False)
