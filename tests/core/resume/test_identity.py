"""Equal calls have the same identity in every process, and different ones differ."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import importlib
import os
import random
import subprocess
import sys
import textwrap
import threading
import types
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.resume.identity import LARGE, Hasher
from skyward.core.tasks.several_calls import STAND_INS, NoIdentity
from tests.examples import examples


def origins(module: str, /, *, whole: bool = False) -> bytes:
    return f"{module} {whole}".encode()


def of(value: Any) -> bytes:
    return Hasher(origins).of(value)


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | st.frozensets(ATOMS),
    max_leaves=12,
)


def rebuilt(value: Any) -> Any:
    """An equal value of which no part is the same object, strings and bytes included."""
    match value:
        case str():
            return "".join([*value])
        case bytes():
            return bytes(bytearray(value))
        case list():
            return [rebuilt(item) for item in value]
        case tuple():
            return tuple(rebuilt(item) for item in value)
        case dict():
            return {rebuilt(key): rebuilt(item) for key, item in value.items()}
        case frozenset():
            return frozenset(sorted(map(rebuilt, value), key=repr))
        case _:
            return value


def told(value: Any) -> str:
    """A text that differs if a value does: `repr`, but for sets, whose order is chance."""
    if isinstance(value, frozenset):
        return f"frozenset {sorted(map(told, value))}"
    if isinstance(value, dict):
        return f"dict {[(told(key), told(item)) for key, item in value.items()]}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} {[told(item) for item in value]}"
    return f"{type(value).__name__} {value!r}"


@given(VALUES)
def test_equal_values_are_the_same(value: Any) -> None:
    assert of(value) == of(rebuilt(value))


@examples(300)
@given(VALUES, VALUES)
def test_others_differ(one: Any, other: Any) -> None:
    assert (of(one) == of(other)) == (told(one) == told(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0, False),
        (1, 1.0),
        (0.0, -0.0),
        ("a", b"a"),
        ([], ()),
        ([1, [2]], [[1], 2]),
        (["ab", "c"], ["a", "bc"]),
        ({1: 2}, {2: 1}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),  # a function may go through it in order
        (frozenset("a"), {"a"}),
        (np.zeros(3), np.zeros(3, np.float32)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros((2, 3)), np.zeros((2, 3), order="F")),  # sums may differ in their last bit
        (np.zeros(2, "i4"), np.zeros(2, ">i4")),
        (np.zeros(1), np.float64(0)),
        (np.array([None, 1]), np.array([None, 2])),
        (np.zeros(2, [("a", "i4"), ("b", "i4")]), np.zeros(2, [("a", "i4"), ("c", "i4")])),
        (np.array(["2020"], "M8[Y]"), np.array(["2020"], "M8[Y]").astype("M8[D]")),
        (random.Random(1), random.Random(2)),
        (np.random.default_rng(1), np.random.default_rng(2)),
        (collections.OrderedDict(a=1), {"a": 1}),
        (functools.partial(pow, 2), functools.partial(pow, 3)),
        (len, repr),
        ([].append, [1].append),
        (os.path, os),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_looks_alike_differs(one: Any, other: Any) -> None:
    assert of(one) != of(other)
    assert of(one) == of(one)
    assert of(other) == of(other)


def test_which_parts_are_one_object_counts() -> None:
    """A task that changes one of them in place sees the difference."""
    inner: list[int] = []
    assert of([inner, inner]) != of([[], []])
    text = "some text"
    assert of([text, text]) == of([text, "".join(["some", " ", text[5:]])])  # nobody can change these


def test_cycles_end() -> None:
    one: list[Any] = [1]
    one.append(one)
    other: list[Any] = [1]
    other.append(other)
    assert of(one) == of(other)


def test_arrays_count_by_content() -> None:
    """Of any size, contiguous or not, mapped from a file or not."""
    for count in (10, 300_000):
        x = np.arange(float(count))
        assert of(x) == of(x.copy()) == of(np.arange(2.0 * count)[:count]) == of(np.repeat(x, 2)[::2])
        y = x.copy()
        y[-1] += 1
        assert of(x) != of(y)


def test_a_read_only_map_counts_by_content(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.arange(1000.0))
    assert of(np.load(file, mmap_mode="r")) == of(np.arange(1000.0)) == of(np.load(file, mmap_mode="c"))


@pytest.mark.parametrize("mode", ["r+", "w+"])
def test_a_map_that_can_be_written_to_has_none(tmp_path: Path, mode: Any) -> None:
    """The task's work may be what it writes there, which a stored result would not do again."""
    array = np.memmap(tmp_path / "x", np.float64, "w+", shape=4)
    with pytest.raises(NoIdentity, match="may do more than return a result"):
        of([np.memmap(tmp_path / "x", np.float64, mode, shape=4)[1:]])
    array.flags.writeable = False
    assert of(array) == of(np.zeros(4))


def test_large_arrays_are_not_read_if_they_are_known() -> None:
    x = np.zeros(LARGE // 8)
    hasher = Hasher(origins, lambda content: b"known" if content.nbytes == LARGE else None)
    assert hasher.of(x) == Hasher(origins, lambda _: b"known").of(np.ones(LARGE // 8))
    assert hasher.found == {b"known"}
    unknown = Hasher(origins, lambda _: None)
    assert unknown.of(x) == of(x)
    assert unknown.found == set()


# --- functions and classes ---


def compiled(text: str, name: str = "f", module: str = "__main__") -> Any:
    """What a program defines."""
    known: dict[str, Any] = {"__name__": module}
    exec(compile(textwrap.dedent(text), "<a program>", "exec", dont_inherit=True), known)
    return known[name]


PROGRAM = """
    import numpy as np
    K = 3
    def helper(a):
        return a + K
    def f(x, y=2):
        z = [helper(i) for i in range(x)]
        return np.sum(z) * y
"""


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        ("K = 3", "K = 4", True),
        ("a + K", "a - K", True),
        ("y=2", "y=3", True),
        ("y=2", "*, y=2", True),
        ("np.sum", "np.prod", True),
        ("helper(i)", "helper(1 + i)", True),
        ("import numpy as np", "import math as np", True),
        ("import numpy as np", "import numpy as np\n    unrelated = 1", False),
        ("K = 3", "# a comment\n\n    K = 3", False),
        ("def f", "def g():\n        return 1\n    def f", False),
    ],
)
def test_a_programs_function_is_its_code_and_what_it_uses(old: str, new: str, differs: bool) -> None:
    assert old in PROGRAM
    assert (of(compiled(PROGRAM)) != of(compiled(PROGRAM.replace(old, new)))) is differs


def test_closures_count() -> None:
    def make(n: Any) -> Any:
        return lambda x: x + n

    assert of(make(1)) == of(make(1)) != of(make(2))
    assert of(make([1])) != of(make([2]))


def test_a_recursive_function_has_an_identity() -> None:
    text = "def f(n):\n    return n * f(n - 1) if n else 1"
    assert of(compiled(text)) == of(compiled(text))


def test_what_is_imported_in_a_function_counts() -> None:
    seen: list[tuple[str, bool]] = []

    def noted(module: str, /, *, whole: bool = False) -> bytes:
        seen.append((module, whole))
        return b""

    Hasher(noted).of(compiled("def f():\n    import json.decoder\n    from os import path"))
    assert {("json.decoder", True), ("os", True)} <= set(seen)


CLASS = """
    import dataclasses, enum, functools
    class Kind(enum.Enum):
        A = 1
        B = 2
    @dataclasses.dataclass
    class Base:
        x: int = 1
        kind: Kind = Kind.A
        def twice(self):
            return 2 * self.x
    class C(Base):
        __slots__ = ("y",)
        @property
        def p(self): return self.x
        @classmethod
        def c(cls): return cls
        @staticmethod
        def s(): return 1
        @functools.cached_property
        def t(self): return 7
"""


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        ("2 * self", "3 * self", True),
        ("x: int = 1", "x: int = 2", True),
        ("B = 2", "B = 3", True),
        ("return self.x", "return -self.x", True),
        ("return cls", "return str(cls)", True),
        ("return 1", "return 2", True),
        ("return 7", "return 8", True),
        ('"y"', '"z"', True),
        ("import dataclasses", "# nothing\n    import dataclasses", False),
    ],
)
def test_a_programs_class_is_its_code(old: str, new: str, differs: bool) -> None:
    assert old in CLASS
    one, other = compiled(CLASS, "C"), compiled(CLASS.replace(old, new), "C")
    assert (of(one) != of(other)) is differs
    assert (of(one()) != of(other())) is differs


@dataclasses.dataclass
class Point:
    x: int
    y: list[int]


class Color(enum.Enum):
    RED = 1
    BLUE = 2


def test_instances_count_by_class_and_state() -> None:
    assert of(Point(1, [2])) == of(Point(1, [2])) != of(Point(1, [3]))
    assert of(Color.RED) != of(Color.BLUE)
    assert of(Point(1, [2]).__eq__) != of(Point(2, [2]).__eq__)


def test_what_goes_by_name_counts_by_its_origin() -> None:
    def edited(module: str, /, *, whole: bool = False) -> bytes:
        return b"edited" if module == __name__ else origins(module, whole=whole)

    one, other = Hasher(origins), Hasher(edited)
    for mine in (Point, Point(1, []), of, sys.modules[__name__]):
        assert one.of(mine) != other.of(mine)
    assert one.of(textwrap.dedent) == other.of(textwrap.dedent)


def test_a_wrapper_that_goes_by_name_is_what_it_wraps() -> None:
    """`functools.lru_cache` pickles as a name, which says nothing of a function of the program."""
    text = "import functools\n@functools.lru_cache\ndef f(x):\n    return x + {}"
    assert of(compiled(text.format(1))) == of(compiled(text.format(1))) != of(compiled(text.format(2)))
    assert of(functools.lru_cache(textwrap.dedent)) == of(functools.lru_cache(textwrap.dedent))


def test_type_variables_of_a_program_count_by_name() -> None:
    text = "from typing import TypeVar\nT = TypeVar('T')\ndef f(x: T) -> T:\n    return x"
    assert of(compiled(text)) == of(compiled(text)) != of(compiled(text.replace("('T')", "('S')")))


def test_what_a_packages_program_imports_counts() -> None:
    """With ``python -m package.program``, it may import from the package, which the bytecode does not name."""
    seen: list[tuple[str, bool]] = []

    def noted(module: str, /, *, whole: bool = False) -> bytes:
        seen.append((module, whole))
        return b""

    function = compiled("def f():\n    from . import helper\n    return helper")
    function.__globals__["__package__"] = "mine"
    Hasher(noted).of(function)
    assert ("mine", True) in seen


def test_the_version_of_numpy_counts_for_arrays() -> None:
    def another(module: str, /, *, whole: bool = False) -> bytes:
        return b"2.0" if module == "numpy" else origins(module, whole=whole)

    for value in (np.zeros(3), np.float64(1), np.dtype("f8"), np.sin):
        assert of(value) != Hasher(another).of(value)


class Half(np.void):
    """A type of which `numpy.dtype.str` tells no more than its size, as those of ml_dtypes."""


class Quarter(np.void):
    """Another."""


def test_types_of_others_are_told_apart() -> None:
    one, other, numpys = (np.dtype((kind, 8)) for kind in (Half, Quarter, np.void))
    assert one.str == other.str == numpys.str
    assert len({of(one), of(other), of(numpys)}) == 3
    assert len({of(np.zeros(2, numpys).view(kind)) for kind in (one, other, numpys)}) == 3


def test_a_ufunc_counts_by_where_it_is() -> None:
    """It has no ``__module__``; those of SciPy may have the names of NumPy's."""
    with pytest.raises(NoIdentity, match="no module has"):
        of(np.frompyfunc(abs, 1, 1))
    special = pytest.importorskip("scipy.special")
    assert special.exp2 is not np.exp2
    assert of(special.exp2) == of(special.exp2) != of(np.exp2)

    def another(module: str, /, *, whole: bool = False) -> bytes:
        return b"2.0" if module == "scipy" else origins(module, whole=whole)

    assert Hasher(another).of(special.exp2) != of(special.exp2)
    assert Hasher(another).of(np.exp2) == of(np.exp2)


# --- modules that are sent by value ---


def made_module(name: str, **values: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    exec("def f():\n    return K", vars(module))
    vars(module).update(values)
    return module


def test_a_module_that_was_made_counts_by_what_is_in_it() -> None:
    assert of(made_module("made", K=1)) == of(made_module("made", K=1)) != of(made_module("made", K=2))
    function = compiled("def f():\n    return settings.K")
    function.__globals__["settings"] = made_module("settings", K=1)
    before = of(function)
    function.__globals__["settings"].K = 2
    assert of(function) != before


def test_a_module_that_was_made_and_goes_by_name_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_here", made_module("made_here", K=1))
    with pytest.raises(NoIdentity, match="made_here was created at run time"):
        of(sys.modules["made_here"])


def test_a_module_that_is_registered_to_go_by_value_counts_by_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registered_one.py").write_text("import math\nK = 1\ndef f():\n    return K\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("registered_one")
    try:
        by_name = of(module)
        cloudpickle.register_pickle_by_value(module)
        before = of(module)
        assert before == of(module)
        vars(module)["K"] = 2
        assert of(module) != before
        cloudpickle.unregister_pickle_by_value(module)
        assert of(module) == by_name, "nodes import it"
    finally:
        del sys.modules["registered_one"]


# --- what has none ---


class Nameless:
    """Pickles as a name of the program's."""

    __module__ = "__main__"

    def __reduce__(self) -> str:
        return "thing"


def test_a_name_of_the_program_alone_is_none() -> None:
    with pytest.raises(NoIdentity, match="thing of your program has no source to compare"):
        of(Nameless())


class Odd:
    def __reduce__(self) -> Any:
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    "value",
    [threading.Lock(), [Odd()], {"a": (x for x in ())}, lambda: _lock],
    ids=["lock", "object", "generator", "lambda"],
)
def test_what_cant_be_pickled_has_none(value: Any) -> None:
    with pytest.raises(NoIdentity):
        of(value)


_lock = threading.Lock()


def test_what_is_nested_too_deeply_has_none() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NoIdentity, match="nested too deeply"):
        of(deep)
    while deep:  # or freeing it would take as many C frames
        deep = deep.pop()


@pytest.mark.slow
def test_a_managers_proxy_has_none() -> None:
    with SyncManager() as manager, pytest.raises(NoIdentity, match="the proxy of a Manager"):
        of((1, manager.list()))


def test_stand_ins_count_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAND_INS, (__name__, "Point"), lambda point: point.x)
    assert of(Point(1, [2])) == of(Point(1, [3])) != of(Point(2, [2]))


# --- other processes ---

SEVERAL = """
import sys, types, enum
import numpy as np
from skyward.core.resume.identity import Hasher
class Kind(enum.Enum):
    A = 1
KNOWN = {"one", "two", "three"}
def g(x): return x in KNOWN
def f(x, *, k=Kind.A, s=frozenset("abc")):
    return g(x), k, {"x", "y"}, lambda: np.ones(3)
print(Hasher(lambda module, /, *, whole=False: b"").of((f, {"a", "b", 1}, np.arange(5), sys.version_info[:2])).hex())
"""


@pytest.mark.slow
def test_it_is_the_same_in_other_processes(tmp_path: Path) -> None:
    """Whatever the seed of strings' hashes, and wherever the program lies."""
    told = set()
    for seed in ("0", "1", "2"):
        file = tmp_path / f"p{seed}.py"
        file.write_text("\n" * int(seed) + SEVERAL)
        done = subprocess.run(
            [sys.executable, str(file)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        told.add(done.stdout)
    assert len(told) == 1
