"""What slots are given to run: they import this module, and so neither pytest nor all that tests look into."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import threading
import time

from joblib import Parallel, delayed, parallel_config


def where() -> int:
    return os.getpid()


def square(x):
    return x**2


def square_later(x, gate):
    while not gate.exists():
        time.sleep(0.001)
    return x**2


class Odd(Exception):
    """Its signature does not match its args."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")
        self.one, self.two = one, two


def fail(x):
    try:
        _ = {}[x]
    except KeyError as error:
        raise Odd(x, threading.Event) from error


def overlap(folder, number):
    mine = folder / str(number)
    mine.touch()
    time.sleep(0.05)
    count = len(list(folder.iterdir()))
    mine.unlink()
    return count


def nap(seconds):
    time.sleep(seconds)
    return seconds


def fail_as_cancelled(x):
    raise concurrent.futures.CancelledError(f"{x} of the task's own")


def inside(depth):
    with Parallel(n_jobs=2) as parallel:
        here = (type(parallel._backend).__name__, parallel._backend.nesting_level)
        return [here] if depth == 0 else [here, *parallel([delayed(inside)(depth - 1)])[0]]


def by_name():
    with parallel_config(backend="skyward") as config:
        kind = type(config["backend"]).__module__.rpartition(".")[0]
    pids = Parallel(n_jobs=2, backend="skyward")(delayed(where)() for _ in range(4))
    counted = Parallel(n_jobs=-1, backend="skyward")(delayed(square)(i) for i in range(3))
    return kind, set(pids) == {os.getpid()}, counted


def threads_of(_):
    import threadpoolctl

    limits = {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}
    return os.environ.get("OMP_NUM_THREADS"), limits


def blas(_):
    import numpy

    numpy.dot(numpy.ones((64, 64)), numpy.ones((64, 64)))
    return threads_of(_)


def look_at(array):
    import numpy

    return type(array) is numpy.memmap, array.flags.writeable, float(array.sum())


def write_into(array):
    array[0] = 5
    return float(array[0]), float(array.sum())


def fill(part, value):
    part[...] = value
    return part


class Holder:
    def __init__(self, output):
        self.output = output


def fill_held(holder, value):
    holder["at"].output[value] = value


def nap_and_sum(array):
    time.sleep(0.05)
    return float(array.sum())


STATE = []


def begin(value):
    STATE.append(value)


def state():
    return list(STATE)


def bad_begin():
    raise RuntimeError("not today")


def die(how):
    if how == "exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    import ctypes

    ctypes.string_at(0)


class ExitsWhenPickled:
    def __reduce__(self):
        raise SystemExit(5)


class Homesick:
    """Can be loaded only in the process that pickled it."""

    def __reduce__(self):
        return load_at_home, (os.getpid(),)


def load_at_home(pid):
    if os.getpid() != pid:
        raise ValueError("not on this side")
    return Homesick()


def make_lock(_):
    return threading.Lock()


def make_homesick(_):
    return Homesick()


class Fickle(Exception):
    def __init__(self, lock):
        super().__init__("fickle")
        self.lock = lock


def raise_fickle(_):
    raise Fickle(threading.Lock())


class Unbearable(Exception):
    def __reduce__(self):
        raise RuntimeError("never")


def raise_unbearable(_):
    raise Unbearable("to be told anyway")


def recurse(x):
    return recurse(x) + 1


def pause(x):
    time.sleep(0.1)
    return x
