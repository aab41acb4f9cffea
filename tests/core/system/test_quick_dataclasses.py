from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any, ClassVar

import pytest

from skyward.core.system.quick_dataclasses import dataclass

OPTIONS = [
    {"frozen": frozen, "slots": slots, "eq": eq, "repr": repr}
    for frozen in (False, True)
    for slots in (False, True)
    for eq in (False, True)
    for repr in (False, True)
]


def make(decorator, options):
    """A class with every kind of field, made by one of the two decorators."""

    class Value:
        """What it is."""

        kind: ClassVar[str] = "value"
        name: str
        items: list[int] = dataclasses.field(default_factory=list)
        size: int = 3
        note: str = dataclasses.field(default="-", repr=False, compare=False)
        number: int = dataclasses.field(default=0, hash=False)
        inner: Any = dataclasses.field(default_factory=dict, init=False, compare=False)
        late: int = dataclasses.field(default=7, init=False, compare=False)

        def __post_init__(self):
            self.inner["seen"] = self.name

    return decorator(**options)(Value)


def both(options):
    return make(dataclass, options), make(dataclasses.dataclass, options)


def outcome(function, *args):
    """What a call returns, or which error it raises."""
    try:
        return function(*args)
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(key for key, on in options.items() if on))
class TestAsTheStandardOne:
    def test_the_class_looks_the_same(self, options):
        ours, standard = both(options)
        assert str(inspect.signature(ours)) == str(inspect.signature(standard))
        assert [field.name for field in dataclasses.fields(ours)] == [f.name for f in dataclasses.fields(standard)]
        for name in ("__doc__", "__match_args__", "__qualname__", "__module__", "kind"):
            assert getattr(ours, name) == getattr(standard, name)
        assert ours.__init__.__annotations__ == standard.__init__.__annotations__
        assert getattr(ours, "__slots__", None) == getattr(standard, "__slots__", None)
        for name in ("__eq__", "__hash__", "__repr__", "__setattr__", "__delattr__", "__getstate__", "__setstate__"):
            assert (name in vars(ours)) == (name in vars(standard)), name
            assert (vars(ours).get(name, 0) is None) == (vars(standard).get(name, 0) is None), name

    def test_its_values_do_the_same(self, options):
        for args in (("a",), ("a", [1]), ("a", [1], 4, "n", 5)):
            ours, standard = (cls(*args) for cls in both(options))
            assert [getattr(ours, f.name) for f in dataclasses.fields(ours)] == [
                getattr(standard, f.name) for f in dataclasses.fields(standard)
            ]
            if options["repr"]:
                assert repr(ours) == repr(standard)
            # Of a frozen class with slots, the standard one's check of other names fails by itself before Python 3.14.
            for change in ("name", "late", *(() if options["frozen"] and options["slots"] else ("other",))):
                assert outcome(setattr, ours, change, 1) == outcome(setattr, standard, change, 1)
                assert outcome(delattr, ours, change) == outcome(delattr, standard, change)

    def test_equality_and_hashes_look_at_the_same_fields(self, options):
        for cls in both(options):
            value = cls("a", (), 3, "x", 1)
            assert (value == cls("a", (), 3, "y", 1)) == options["eq"]
            assert value != cls("a", (), 3, "x", 2)
            assert value != cls("b", (), 3, "x", 1)
            assert value != ("a", (), 3, "x", 1)
            if options["eq"] and options["frozen"]:
                assert hash(value) == hash(("a", (), 3)), "number is not hashed, nor note"
                assert hash(value) == hash(cls("a", (), 3, "x", 2))

    def test_it_can_be_copied_and_replaced(self, options):
        for cls in both(options):
            value = cls("a", [1])
            for other in (copy.copy(value), copy.deepcopy(value), dataclasses.replace(value)):
                assert (other.name, other.items, other.inner) == ("a", [1], {"seen": "a"})
            assert dataclasses.replace(value, name="b").name == "b"

    @pytest.mark.parametrize("args", [(), ("a", [1], 2, "n", 3, 4)])
    def test_wrong_arguments_raise_the_same(self, options, args):
        ours, standard = (outcome(cls, *args) for cls in both(options))
        assert ours == standard


@dataclass(frozen=True, slots=True)
class Sent:
    a: int
    b: str = "b"


@dataclass(frozen=True, slots=True)
class Nothing:
    """No fields."""


@dataclass(frozen=True, slots=True)
class One:
    value: object


@dataclass(slots=True)
class Tree:
    children: list[Tree] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class Special:
    """Has methods of its own."""

    a: int

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 5

    def __repr__(self):
        return "special"


def test_values_are_pickled():
    assert pickle.loads(pickle.dumps(Sent(1, "c"))) == Sent(1, "c")


def test_no_field_and_one_field():
    nan = float("nan")
    assert Nothing() == Nothing()
    assert repr(Nothing()) == "Nothing()"
    assert hash(Nothing()) == hash(())
    assert One(nan) == One(nan), "the same object, as in tuples"
    assert hash(One(1)) == hash((1,))


def test_a_value_inside_itself_is_shown():
    tree = Tree()
    tree.children.append(tree)
    assert repr(tree) == "Tree(children=[...])"


def test_methods_of_the_class_stay():
    assert (Special(1) == 3, hash(Special(1)), repr(Special(1))) == (True, 5, "special")


def test_a_subclass_may_have_more_attributes():
    class More(Special):
        pass

    more = More(1)
    more.other = 2
    assert more.other == 2
    del more.other
    with pytest.raises(dataclasses.FrozenInstanceError, match="a"):
        more.a = 3


@pytest.mark.parametrize("decorator", [dataclass, dataclasses.dataclass])
def test_dataclasses_inherit_from_it(decorator):
    @decorator(frozen=True)
    class More(Sent):
        c: int = 3

    assert repr(More(1)).endswith("More(a=1, b='b', c=3)")
    assert hash(More(1)) == hash(More(1, "b", 3))
    with pytest.raises(TypeError, match="cannot inherit non-frozen dataclass from a frozen one"):
        decorator(slots=True)(type("Wrong", (Sent,), {}))


def test_a_class_without_a_docstring_has_its_name():
    assert Sent.__doc__ == "Sent"
