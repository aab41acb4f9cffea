"""What only the program has goes by value, and works there as here; what a module has goes by its name."""

from __future__ import annotations

import functools
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest

from skyward.core.payload import pickling
from skyward.core.payload.by_value import is_by_name

UserId = typing.NewType("UserId", int)


@functools.cache
def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@functools.lru_cache(maxsize=7, typed=True)
def double(x: float) -> float:
    return 2 * x


@functools.singledispatch
def size(thing: Any) -> int:
    return 1


@size.register
def _(thing: list) -> int:  # type: ignore[type-arg]
    return sum(map(size, thing))


class Circle:
    def __init__(self, radius: float) -> None:
        self.radius = radius

    @functools.cached_property
    def area(self) -> float:
        """Its area."""
        return 3 * self.radius**2

    @functools.cache  # noqa: B019
    def scaled(self, by: float) -> float:
        return self.radius * by


def owner(number: UserId) -> UserId:
    return UserId(number + 1)


def there(value: Any) -> Any:
    payload = pickling.dumps(value)
    return pickling.loads(payload.head, payload.buffers)


@pytest.fixture
def program() -> Iterator[types.ModuleType]:
    """This module, as if it were the program."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield module
    cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.usefixtures("program")
def test_a_cached_function_that_calls_itself() -> None:
    fibonacci.cache_clear()
    fibonacci(5)
    sent = there(fibonacci)
    assert sent is not fibonacci
    assert sent.cache_info().currsize == 0, "a cache arrives empty"
    assert sent(30) == 832040
    assert sent.cache_info().currsize == 31, "and is used"


@pytest.mark.usefixtures("program")
def test_the_settings_of_a_cache_arrive() -> None:
    assert there(double).cache_parameters() == {"maxsize": 7, "typed": True}


@pytest.mark.usefixtures("program")
def test_a_generic_function_that_calls_itself() -> None:
    sent = there(size)
    assert sent is not size
    assert (sent([1, [2, 3]]), sent("x")) == (3, 1)
    assert sent.dispatch(list) is not size.dispatch(list)


@pytest.mark.usefixtures("program")
def test_a_class_with_a_cached_property_and_a_cached_method() -> None:
    circle = Circle(2.0)
    assert circle.area == 12.0
    sent = there(circle)
    assert (sent.area, type(sent)(1.0).area, sent.scaled(3.0)) == (12.0, 3.0, 6.0)
    assert type(sent).area.__doc__ == "Its area."


@pytest.mark.usefixtures("program")
def test_a_type_of_the_users_own_in_an_annotation() -> None:
    sent = there(owner)
    assert sent is not owner
    assert sent(4) == 5
    kind = there(UserId)
    assert (kind.__name__, kind.__supertype__, kind.__module__) == ("UserId", int, __name__)


@pytest.mark.parametrize("thing", [fibonacci, double, size, Circle, UserId, owner])
def test_what_a_module_has_goes_by_its_name(thing: Any) -> None:
    assert there(thing) is thing


def test_what_goes_by_its_name() -> None:
    assert is_by_name(Circle)
    assert is_by_name(textwrap.dedent)
    assert not is_by_name(lambda: 1)
    assert not is_by_name(types.SimpleNamespace())


@pytest.mark.usefixtures("program")
def test_what_is_asked_for_does_not() -> None:
    assert not is_by_name(Circle)
