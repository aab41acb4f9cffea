"""Reads pickles as data: an unpickler that knows what each name may be used for, and does nothing else.

The C unpickler lets us intercept the lookup of a name, but not calls of ``__setstate__`` and assignments of attributes
and items: the author of a pickle can have that done to classes, and to arrays whose types then lie about their memory.
So it is used only for pickles that refer to no name, which is most of them. All others are read by `DataUnpickler`: the
standard library's Python unpickler with a rule for every such step, and without the opcodes that our pickler never
writes.
"""

from __future__ import annotations

import copyreg
import io
import mmap
import pickle
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from skyward.core.results.rules import Mark, Pending, RefusedPickle, Rule

__all__ = ["Names", "loads"]


class Names(Protocol):
    """Maps names to rules."""

    def __call__(self, module: str, name: str) -> Rule:
        """Return the rule for a name. Raises `RefusedPickle` if there is none."""
        ...


def loads(head: bytes | bytearray | memoryview | mmap.mmap, buffers: Sequence[Any], names: Names) -> Any:
    """Load a value.

    Parameters
    ----------
    head
        The pickle.
    buffers
        Its out-of-band buffers, in order.
    names
        The rules for the names it refers to.

    Raises
    ------
    RefusedPickle
        The pickle does something that data does not.
    Exception
        It is broken, or what it contains is not available here.
    """
    file = io.BytesIO(head)
    if not copyreg._extension_registry:  # type: ignore[attr-defined]  # noqa: SLF001 - C resolves those without find_class
        try:
            return _Nameless(file, buffers=buffers).load()
        except _HasNames:
            file.seek(0)
    return DataUnpickler(file, buffers, names).load()


class _HasNames(Exception):
    pass


class _Nameless(pickle.Unpickler):
    """Reads values that refer to nothing by name."""

    def find_class(self, module: str, name: str) -> Any:
        raise _HasNames


class DataUnpickler(pickle._Unpickler):  # noqa: SLF001 - the reference implementation in pickle.py
    """Reads pickles of protocols 4 and 5, as `pickle.Pickler` writes them.

    Parameters
    ----------
    file
        The pickle.
    buffers
        Its out-of-band buffers, in order.
    names
        The rules for the names it refers to.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]]
    stack: list[Any]
    memo: dict[int, Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO, buffers: Sequence[Any], names: Names) -> None:
        super().__init__(file, buffers=buffers)
        self.read = file.read  # frames only help with files that are read in small pieces
        self.readinto = file.readinto
        self._names = names
        self._rules: dict[int, Rule] = {}  # by the id of their values, which the rules keep alive
        self._fresh: dict[int, tuple[Any, Rule]] = {}  # objects that were made but have no state yet, by id
        self.used: dict[int, Any] = {}  # buffers that are the memory of an array, by id

    def load(self) -> Any:
        """Load the value. Raises as `loads` does."""
        self.metastack: list[list[Any]] = []
        self.stack = []
        self.append = self.stack.append
        read, dispatch = self.read, self.dispatch
        try:
            while True:
                dispatch[read(1)[0]](self)
        except pickle._Stop as stop:  # type: ignore[attr-defined]  # noqa: SLF001
            value = stop.value
        if any(type(made) is Pending for made, _ in self._fresh.values()):
            raise RefusedPickle("leaves an array unfinished")
        return value

    def load_frame(self) -> None:
        """Skip the start of a frame."""
        self.read(8)

    def load_stack_global(self) -> None:
        """Replace a name with the value of its rule."""
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise RefusedPickle("uses something other than text as a name")
        rule = self._names(module, name)
        self._rules[id(rule.value)] = rule
        self.append(rule.value)

    def load_reduce(self) -> None:
        """Call what the name's rule says."""
        args, function = self.stack.pop(), self.stack[-1]
        rule = self._rules.get(id(function))
        if rule is None or rule.call is None or type(args) is not tuple:
            raise RefusedPickle(f"calls {_called(function)}")
        made = rule.call(self.used, *args) if rule.memory else rule.call(*args)
        if type(made) is Rule:  # a name found by a call
            self._rules[id(made.value)] = made
            made = made.value
        self.stack[-1] = made
        if rule.build is not None or rule.items:
            self._fresh[id(made)] = made, rule

    def load_newobj(self) -> None:
        """Make an object without ``__init__``."""
        args = self.stack.pop()
        self._new(args, {})

    def load_newobj_ex(self) -> None:
        """Make an object without ``__init__``, with keyword arguments."""
        named, args = self.stack.pop(), self.stack.pop()
        self._new(args, named)

    def _new(self, args: Any, named: Any) -> None:
        kind = self.stack[-1]
        rule = self._rules.get(id(kind))
        if rule is None or rule.new is None or type(args) is not tuple or type(named) is not dict:
            raise RefusedPickle(f"makes an object from {_called(kind)}")
        self.stack[-1] = made = rule.new(*args, **named)
        self._fresh[id(made)] = made, rule

    def load_build(self) -> None:
        """Set an object's state, once."""
        state, made = self.stack.pop(), self.stack[-1]
        _, rule = self._fresh.pop(id(made), (None, None))
        if rule is None or rule.build is None:
            raise RefusedPickle(f"changes {_called(made)}")
        built = rule.build(made, state)
        if built is not made:
            self.stack[-1] = built
            if type(made) is Pending and made.place >= 0:
                self.memo[made.place] = built

    def load_memoize(self) -> None:
        """Remember an object for later references."""
        made = self.stack[-1]
        if type(made) is Pending:
            made.place = len(self.memo)
        self.memo[len(self.memo)] = made

    def _recall(self, index: int) -> None:
        found = self.memo.get(index, _NOTHING)
        if type(found) is Pending:
            raise RefusedPickle("refers to an array before it is complete, or to nothing")
        self.append(found)

    def load_binget(self) -> None:
        """Push a remembered object."""
        self._recall(self.read(1)[0])

    def load_long_binget(self) -> None:
        """Push a remembered object with a large index."""
        self._recall(int.from_bytes(self.read(4), "little"))

    def _takes_items(self, target: Any, plain: type) -> None:
        if type(target) is plain:
            return
        _, rule = self._fresh.get(id(target), (None, None))
        if rule is None or not rule.items:
            raise RefusedPickle(f"puts items into {_called(target)}")

    def load_append(self) -> None:
        """Append one item to a list."""
        value = self.stack.pop()
        self._takes_items(self.stack[-1], list)
        self.stack[-1].append(value)

    def load_appends(self) -> None:
        """Append items to a list."""
        items = self.pop_mark()
        self._takes_items(self.stack[-1], list)
        self.stack[-1].extend(items)

    def load_setitem(self) -> None:
        """Set one item of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._takes_items(self.stack[-1], dict)
        self.stack[-1][key] = value

    def load_setitems(self) -> None:
        """Set items of a dict."""
        items = self.pop_mark()
        target = self.stack[-1]
        self._takes_items(target, dict)
        for index in range(0, len(items), 2):
            target[items[index]] = items[index + 1]

    def load_additems(self) -> None:
        """Add items to a set."""
        items = self.pop_mark()
        self._takes_items(self.stack[-1], set)
        for item in items:
            self.stack[-1].add(item)

    def load_foreign(self) -> None:
        """Refuse an opcode of old pickles, of persistent ids or of extension codes."""
        raise RefusedPickle("is not a pickle that a node writes")


_NOTHING = Pending()

_AS_THEY_ARE = """
    proto none false true binint binint1 binint2 long1 long4 binfloat binbytes short_binbytes binbytes8 bytearray8
    binunicode short_binunicode binunicode8 next_buffer readonly_buffer tuple empty_tuple tuple1 tuple2 tuple3
    empty_list empty_dictionary empty_set frozenset pop pop_mark mark stop
"""
_OURS = """
    frame stack_global reduce newobj newobj_ex build memoize binget long_binget append appends setitem setitems additems
"""


def _dispatch() -> dict[int, Callable[[Any], None]]:
    theirs = {function.__name__: code for code, function in pickle._Unpickler.dispatch.items()}  # noqa: SLF001
    table: dict[int, Callable[[Any], None]] = dict.fromkeys(range(256), DataUnpickler.load_foreign)
    for name in (_AS_THEY_ARE + _OURS).split():
        table[theirs[f"load_{name}"]] = getattr(DataUnpickler, f"load_{name}")
    return table


DataUnpickler.dispatch = _dispatch()


def _called(made: Any) -> str:
    """Name something in a refusal."""
    if isinstance(made, type):
        return f"the class {made.__module__}.{made.__qualname__}"
    return f"a {type(made).__qualname__}" if not isinstance(made, Mark) else f"{made}"
