"""The seeds' functions that run on nodes; apart from the tests, so that no slot imports scikit-learn for them."""

from __future__ import annotations

import time

from joblib import Parallel, delayed


def sleep(seconds):
    time.sleep(seconds / 100)


def slow_task(x):
    """A slow task that takes 5 seconds."""
    sleep(5)
    return x * 2


def slow_item(i):
    time.sleep(0.25)  # long enough that joblib makes no batches of them
    return i * 2


def process(x):
    return x**2


def process_item(item):
    """Function to parallelize."""
    return item**2


def process_group(group_id, items):
    """Process group of items in parallel."""
    return Parallel(n_jobs=2)(
        delayed(process_item)(item) for item in items
    )  # fmt: skip
