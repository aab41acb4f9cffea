"""Reading pickles as data: nothing is called, changed or found that data does not need."""

from __future__ import annotations

import contextlib
import copyreg
import functools
import importlib
import operator
import os
import pickle
import subprocess
import sys
import tempfile
import types
import weakref
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.results.rules import RefusedPickle
from tests.core.results.hostile import Reduced, assemble, call, name, plain, read, text
from tests.examples import examples

np = pytest.importorskip("numpy")


class Mine:
    """A class of the user's own."""

    def __init__(self) -> None:
        self.x = 1

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("its code ran")


def dumped(*reduced: Any) -> bytes:
    return pickle.dumps(Reduced(*reduced), protocol=5)


CALLS = {
    "os.system": lambda mark: dumped(os.system, (f"touch {mark}",)),
    "Popen": lambda mark: dumped(subprocess.Popen, (["touch", mark],)),
    "eval": lambda mark: dumped(eval, (f"open({mark!r}, 'w')",)),
    "exec": lambda mark: dumped(exec, (f"open({mark!r}, 'w')",)),
    "open": lambda mark: dumped(open, (mark, "w")),
    "__import__": lambda _: dumped(__import__, ("antigravity",)),
    "import_module": lambda _: dumped(importlib.import_module, ("antigravity",)),
    "getattr": lambda _: dumped(getattr, (int, "from_bytes")),
    "setattr": lambda _: dumped(setattr, (Mine, "x", 2)),
    "partial": lambda mark: dumped(functools.partial, (os.system, f"touch {mark}")),
    "reduce": lambda mark: dumped(functools.reduce, (os.system, [f"touch {mark}"])),
    "methodcaller": lambda _: dumped(operator.methodcaller, ("system",)),
    "attrgetter": lambda _: dumped(operator.attrgetter, ("system",)),
    "map": lambda mark: dumped(list, (Reduced(map, (os.system, [f"touch {mark}"])),)),
    "loads": lambda _: dumped(pickle.loads, (pickle.dumps(1),)),
    "finalize": lambda mark: dumped(weakref.finalize, (Mine, os.system, f"touch {mark}")),
    "mkdtemp": lambda _: dumped(tempfile.mkdtemp, ()),
    "TemporaryDirectory": lambda _: dumped(tempfile.TemporaryDirectory, ()),
    "type": lambda _: dumped(type, ("A", (), {})),
    "__newobj__": lambda _: assemble(call("copyreg", "__newobj__", name("tests.core.results.test_unpickler", "Mine"))),
    "_reconstructor": lambda _: dumped(copyreg._reconstructor, (Mine, object, None)),  # type: ignore[attr-defined]
    "ModuleType": lambda _: cloudpickle.dumps(types.ModuleType("m")),
    "np.load": lambda mark: dumped(np.load, (mark,)),
    "np.memmap": lambda mark: dumped(np.memmap, (mark, "u1", "w+", 0, (3,))),
    "np.fromfile": lambda _: dumped(np.fromfile, ("/etc/hostname",)),
    "DataSource": lambda _: assemble(call("numpy.lib.npyio", "DataSource", text("."))),
    "f2py": lambda _: assemble(call("numpy.f2py", "run_main", plain(["-c"]))),
    "ufunc called": lambda _: dumped(np.add, (1, 2)),
    "int called": lambda _: dumped(int, ("1" * 5000,)),
    "lambda": lambda _: cloudpickle.dumps(lambda: 1),
    "code": lambda mark: cloudpickle.dumps(compile(f"open({mark!r}, 'w')", "x", "exec")),
    "class by value": lambda _: cloudpickle.dumps(type("Local", (), {"__module__": "__main__"})),
    "module": lambda _: cloudpickle.dumps(os),
    "method": lambda _: pickle.dumps([].append, protocol=5),
    "class of the user's": lambda _: pickle.dumps(Mine(), protocol=5),
    "class of the user's as a value": lambda _: pickle.dumps(Mine, protocol=5),
    "function as a value": lambda _: pickle.dumps(os.system, protocol=5),
    "joblib's loader": lambda _: assemble(call("joblib.numpy_pickle", "load", text("x"))),
    "pandas' loader": lambda _: assemble(call("pandas", "read_pickle", text("x"))),
    "pandas' eval": lambda _: assemble(call("pandas.core.computation.eval", "eval", text("1"))),
    "scikit-learn's downloads": lambda _: assemble(call("sklearn.datasets", "fetch_openml", text("x"))),
    "scikit-learn's files": lambda _: assemble(name("sklearn.utils._testing", "TempMemmap")),
    "scikit-learn's os": lambda _: assemble(call("sklearn.utils._show_versions", "platform")),
    "scikit-learn's imports": lambda _: assemble(name("sklearn.base", "warnings")),
    "scikit-learn's callbacks": lambda _: assemble(name("sklearn.callback._scoring_monitor", "ScoringMonitor")),
    "dotted": lambda _: assemble(name("numpy", "random.seed")),
    "dotted through a class": lambda _: assemble(name("datetime", "datetime.now")),
    "dotted through a module": lambda _: assemble(name("sklearn.base", "warnings.sys.modules")),
    "private": lambda _: assemble(name("builtins", "__dict__")),
    "another part of a zone": lambda _: assemble(
        call("builtins", "getattr", name("zoneinfo", "ZoneInfo"), text("from_file"))
    ),
    "type of something": lambda _: dumped(type, (1,)),
    "factory": lambda _: assemble(call("collections", "defaultdict", name("pathlib", "Path"))),
    "path": lambda _: assemble(call("pathlib", "Path", plain(b"x"))),
}


SLOW = {"scikit-learn's imports", "scikit-learn's callbacks", "dotted through a module"}  # import scikit-learn


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CALLS])
def test_what_is_no_data_is_refused(case, tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises((RefusedPickle, TypeError)):  # the latter for arguments that ours does not take
        read(CALLS[case](str(mark)))
    assert not mark.exists()


INSTRUCTIONS = {
    "GLOBAL": b"cos\nsystem\n.",
    "INST": b"(S'x'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'x'\no.",
    "PERSID": b"Px\n.",
    "BINPERSID": b"NQ.",
    "BUILD of a class": name("collections", "OrderedDict") + b"N" + plain({"__init__": 1}) + b"\x86b.",
    "BUILD of a function's mark": name("builtins", "getattr") + plain({"x": 1}) + b"b.",
    "BUILD of a dict": b"}" + plain({"x": 1}) + b"b" + name("builtins", "int") + b".",
    "BUILD twice": call("types", "SimpleNamespace") + (plain({"x": 1}) + b"b") * 2 + b".",
    "SETITEM of a class": name("collections", "OrderedDict") + text("x") + b"Ns.",
    "SETITEMS of a namespace": call("types", "SimpleNamespace") + b"(" + text("x") + b"Nu.",
    "APPEND to an array":
    call("array", "_array_reconstructor", name("array", "array"), text("b"), b"K\x01", plain(b"a")) + b"K\x01a.",
    "APPENDS to a set": b"\x8f" + name("builtins", "int") + b"0(K\x01e.",
    "ADDITEMS to a list": b"]" + name("builtins", "int") + b"0(K\x01\x90.",
    "REDUCE of a result": call("builtins", "getattr", name("zoneinfo", "ZoneInfo"), text("_unpickle")) + b"K\x01R.",
    "NEWOBJ of a class that is a value": name("builtins", "int") + b")\x81.",
    "NEWOBJ_EX": name("builtins", "dict") + b")}\x92.",
    "STACK_GLOBAL of no text": b"K\x01K\x02\x93.",
}  # fmt: skip


@pytest.mark.parametrize("case", INSTRUCTIONS)
def test_instructions_that_no_node_writes_are_refused(case):
    with pytest.raises((RefusedPickle, pickle.UnpicklingError, AttributeError)):  # the latter where nothing has a name
        read(b"\x80\x05" + INSTRUCTIONS[case])


def test_extension_codes_are_not_looked_up():
    """The C unpickler takes them from a cache, without asking."""
    copyreg.add_extension("posix", "system", 241)
    try:
        data = pickle.dumps(os.system, protocol=5)
        assert b"\x82" in data
        with pytest.raises(RefusedPickle):
            read(data)
    finally:
        copyreg.remove_extension("posix", "system", 241)


def test_what_names_nothing_is_read_by_c():
    value = [1, 2.5, "a", b"b", None, True, {"k": (1, {2}, frozenset([3]))}, 2**100, bytearray(b"x")]
    assert read(pickle.dumps(value, protocol=5)) == value


def test_a_broken_pickle_raises():
    for data in (b"", b"\x80\x05", b"\x80\x05.", pickle.dumps(np.arange(3), protocol=5)[:-20]):
        with pytest.raises(Exception):  # noqa: B017 - whichever
            read(data)


def test_shared_and_circular_values_stay_so():
    inner = [1]
    circle: list[Any] = [inner, inner, np.float64(1)]
    circle.append(circle)
    back = read(pickle.dumps(circle, protocol=5))
    assert back[0] is back[1]
    assert back[3] is back


# --- any bytes ---

EVENTS = {"os.system", "os.exec", "os.spawn", "os.posix_spawn", "subprocess.Popen", "socket.connect", "shutil.rmtree"}
SEEN: list[str] = []


@functools.cache
def watch() -> None:
    events, seen = EVENTS, SEEN  # a hook outlives its module's globals
    sys.addaudithook(lambda event, _: seen.append(event) if event in events else None)


SAMPLES = [
    pickle.dumps(value, protocol=5)
    for value in ([np.float64(1), np.arange(3)], {"a": ValueError("x"), "b": (1, [2.5])}, np.random.default_rng(0))
] + [CALLS[case]("/nowhere/mark") for case in ("os.system", "eval", "partial", "Popen")]


@examples(150)
@given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4))
def test_whatever_is_changed_in_a_pickle_does_nothing(sample, changes):
    watch()
    data = bytearray(sample)
    for place, value in changes:
        data[place % len(data)] = value
    with contextlib.suppress(Exception):  # most of them raise something
        read(bytes(data))
    assert SEEN == []


def test_the_watch_sees():
    watch()
    pickle.loads(dumped(os.system, ("true",)))
    assert "os.system" in SEEN
    SEEN.clear()
