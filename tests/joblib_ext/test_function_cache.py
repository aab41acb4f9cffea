"""A kept pickle is never another than a new one would be."""

from __future__ import annotations

import math
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from skyward.joblib_ext.function_cache import StableFunctions


def script(text: str, **names: Any) -> dict[str, Any]:
    """What a user's script would have defined."""
    module = types.ModuleType("__main__")
    module.__dict__.update(names)
    exec(text, module.__dict__)
    return module.__dict__


def keeps(function: Callable[..., Any]) -> bool:
    return StableFunctions().pickled(function) is not None


def test_a_functions_pickle_is_made_once_and_does_what_it_does() -> None:
    functions = StableFunctions()
    double = script("def double(x: int, *, times: int = 2) -> int:\n    return x * times * factor", factor=1)["double"]
    data = functions.pickled(double)
    assert data is not None
    assert functions.pickled(double) is data
    assert pickle.loads(data)(4) == 8
    assert functions.pickled(math.sqrt) == cloudpickle.dumps(math.sqrt, protocol=5)


@pytest.mark.parametrize(
    "change",
    [
        "factor = 10**6",
        "f.__defaults__ = (7,)",
        "f.__kwdefaults__ = {'k': 7}",
        "f.__kwdefaults__['k'] = 7",
        "f.__code__ = (lambda x, y=0, *, k=0: 9).__code__",
        "helper = other",
        "helper.__code__ = other.__code__",
        "np = math",
        "late = 5",
        "abs = math.sqrt",
        "f.note = 1",
        "f.__annotations__['z'] = 1",
    ],
)
def test_what_has_changed_is_pickled_anew(change: str) -> None:
    names = script(
        "import math, cmath as np\n"
        "factor = 3\n"
        "def helper(x): return x\n"
        "def other(x): return -x\n"
        "def f(x: 'int', y=1, *, k=2): return abs(helper(x) * factor) + y + k + np.pi if x else late",
    )
    functions, f = StableFunctions(), names["f"]
    before = functions.pickled(f)
    assert before is not None
    assert functions.pickled(f) is before
    exec(change, names)
    after = functions.pickled(f)
    assert after is not before
    if after is not None:
        assert pickle.loads(after)(2) == f(2)
        assert functions.pickled(f) is after


def test_a_closure_that_is_assigned_to_is_seen() -> None:
    def outer() -> tuple[Callable[[], int], Callable[[int], None]]:
        value = 1

        def get() -> int:
            return value

        def put(new: int) -> None:
            nonlocal value
            value = new

        return get, put

    get, put = outer()
    functions = StableFunctions()
    first = functions.pickled(get)
    put(2)
    second = functions.pickled(get)
    assert first is not None
    assert second is not None
    assert (pickle.loads(first)(), pickle.loads(second)()) == (1, 2)


def test_what_may_change_in_place_is_not_kept() -> None:
    state = [1]
    assert not keeps(lambda: state)
    assert not keeps(script("def f(x=[]): return x")["f"])
    assert not keeps(script("def f(): return table", table={})["f"])
    assert not keeps(script("def g(): return table\ndef f(): return g()", table={})["f"])
    assert not keeps(script("class C: pass\ndef f(): return C()")["f"])
    assert not keeps([].append)
    assert not keeps(script("def f(): return t", t=(1, [2]))["f"])


def test_recursion_and_a_module_that_travels_by_value() -> None:
    fact = script("def fact(n): return 1 if n < 2 else n * fact(n - 1)")["fact"]
    data = StableFunctions().pickled(fact)
    assert data is not None
    assert pickle.loads(data)(5) == 120
    assert keeps(keeps)
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)
    try:
        assert not keeps(keeps)
    finally:
        cloudpickle.unregister_pickle_by_value(here)


def test_it_remembers_a_few() -> None:
    functions = StableFunctions()
    made = [script("def f(): return n", n=n)["f"] for n in range(100)]
    for _ in range(2):
        for n, f in enumerate(made):
            data = functions.pickled(f)
            assert data is not None
            assert pickle.loads(data)() == n
    assert len(functions._kept) <= 32
