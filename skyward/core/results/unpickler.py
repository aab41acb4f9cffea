"""Pickles read as data: a machine that knows what each name may be used for, and does nothing else.

The C unpickler asks before it looks a name up, but not before it calls ``__setstate__``, sets an attribute or an item:
whoever writes the pickle can have that done to classes, and to arrays whose types then lie about their memory. So it is
used only as long as a pickle names nothing, which most don't. For all else there is `Machine`, Python's own unpickler
in Python with every such step under a rule, and without the instructions that our pickler never writes.
"""

from __future__ import annotations

import copyreg
import io
import mmap
import pickle
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from skyward.core.results.rules import Mark, Pending, Refused, Rule

__all__ = ["Names", "loads"]


class Names(Protocol):
    """What names mean."""

    def __call__(self, module: str, name: str) -> Rule:
        """The rule for a name. Raises `Refused` where there is none."""
        ...


def loads(head: bytes | bytearray | memoryview | mmap.mmap, buffers: Sequence[Any], names: Names) -> Any:
    """The value again.

    Raises
    ------
    Refused
        The pickle does what data does not.
    Exception
        It is broken, or what it holds can't be had here.
    """
    file = io.BytesIO(head)
    if not copyreg._extension_registry:  # type: ignore[attr-defined]  # noqa: SLF001 - C finds those without asking
        try:
            return _Nameless(file, buffers=buffers).load()
        except _HasNames:
            file.seek(0)
    return Machine(file, buffers, names).load()


class _HasNames(Exception):
    pass


class _Nameless(pickle.Unpickler):
    """Reads values that need no class by name."""

    def find_class(self, module: str, name: str) -> Any:
        raise _HasNames


class Machine(pickle._Unpickler):  # noqa: SLF001 - it is what Python documents by the code of pickle.py
    """Reads pickles of protocols 4 and 5, as `pickle.Pickler` writes them.

    Parameters
    ----------
    file
        The pickle.
    buffers
        Its out-of-band buffers, in order.
    names
        What names mean.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]]
    stack: list[Any]
    memo: dict[int, Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO, buffers: Sequence[Any], names: Names) -> None:
        super().__init__(file, buffers=buffers)
        self.read = file.read  # frames are there for files that are read in small pieces
        self.readinto = file.readinto
        self._names = names
        self._rules: dict[int, Rule] = {}  # by the identity of their values, which the rules keep alive
        self._fresh: dict[int, tuple[Any, Rule]] = {}  # objects that were made and have no state yet, by identity
        self.used: dict[int, Any] = {}  # buffers that are the memory of an array, by identity

    def load(self) -> Any:
        """The value. Raises as `loads` does."""
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
            raise Refused("leaves an array unfinished")
        return value

    def load_frame(self) -> None:
        """Where a frame begins."""
        self.read(8)

    def load_stack_global(self) -> None:
        """A name becomes what its rule puts in its place."""
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise Refused("names something by what is no text")
        rule = self._names(module, name)
        self._rules[id(rule.value)] = rule
        self.append(rule.value)

    def load_reduce(self) -> None:
        """A call."""
        args, function = self.stack.pop(), self.stack[-1]
        rule = self._rules.get(id(function))
        if rule is None or rule.call is None or type(args) is not tuple:
            raise Refused(f"calls {_called(function)}")
        made = rule.call(self.used, *args) if rule.memory else rule.call(*args)
        if type(made) is Rule:  # a name that is found by a call
            self._rules[id(made.value)] = made
            made = made.value
        self.stack[-1] = made
        if rule.build is not None or rule.items:
            self._fresh[id(made)] = made, rule

    def load_newobj(self) -> None:
        """An object without ``__init__``."""
        args = self.stack.pop()
        self._new(args, {})

    def load_newobj_ex(self) -> None:
        """The same with arguments by name."""
        named, args = self.stack.pop(), self.stack.pop()
        self._new(args, named)

    def _new(self, args: Any, named: Any) -> None:
        kind = self.stack[-1]
        rule = self._rules.get(id(kind))
        if rule is None or rule.new is None or type(args) is not tuple or type(named) is not dict:
            raise Refused(f"makes a {_called(kind)}")
        self.stack[-1] = made = rule.new(*args, **named)
        self._fresh[id(made)] = made, rule

    def load_build(self) -> None:
        """An object's state, once."""
        state, made = self.stack.pop(), self.stack[-1]
        _, rule = self._fresh.pop(id(made), (None, None))
        if rule is None or rule.build is None:
            raise Refused(f"changes {_called(made)}")
        built = rule.build(made, state)
        if built is not made:
            self.stack[-1] = built
            if type(made) is Pending and made.place >= 0:
                self.memo[made.place] = built

    def load_memoize(self) -> None:
        """What comes may be referred to."""
        made = self.stack[-1]
        if type(made) is Pending:
            made.place = len(self.memo)
        self.memo[len(self.memo)] = made

    def _recall(self, index: int) -> None:
        found = self.memo.get(index, _NOTHING)
        if type(found) is Pending:
            raise Refused("refers to an array before it is made, or to nothing")
        self.append(found)

    def load_binget(self) -> None:
        """A reference."""
        self._recall(self.read(1)[0])

    def load_long_binget(self) -> None:
        """A reference."""
        self._recall(int.from_bytes(self.read(4), "little"))

    def _takes_items(self, target: Any, plain: type) -> None:
        if type(target) is plain:
            return
        _, rule = self._fresh.get(id(target), (None, None))
        if rule is None or not rule.items:
            raise Refused(f"puts items into {_called(target)}")

    def load_append(self) -> None:
        """One item of a list."""
        value = self.stack.pop()
        self._takes_items(self.stack[-1], list)
        self.stack[-1].append(value)

    def load_appends(self) -> None:
        """Items of a list."""
        items = self.pop_mark()
        self._takes_items(self.stack[-1], list)
        self.stack[-1].extend(items)

    def load_setitem(self) -> None:
        """One item of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._takes_items(self.stack[-1], dict)
        self.stack[-1][key] = value

    def load_setitems(self) -> None:
        """Items of a dict."""
        items = self.pop_mark()
        target = self.stack[-1]
        self._takes_items(target, dict)
        for index in range(0, len(items), 2):
            target[items[index]] = items[index + 1]

    def load_additems(self) -> None:
        """Items of a set."""
        items = self.pop_mark()
        self._takes_items(self.stack[-1], set)
        for item in items:
            self.stack[-1].add(item)

    def load_foreign(self) -> None:
        """An instruction of old pickles, of persistent ids or of extension codes."""
        raise Refused("is no pickle that a node writes")


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
    table: dict[int, Callable[[Any], None]] = dict.fromkeys(range(256), Machine.load_foreign)
    for name in (_AS_THEY_ARE + _OURS).split():
        table[theirs[f"load_{name}"]] = getattr(Machine, f"load_{name}")
    return table


Machine.dispatch = _dispatch()


def _called(made: Any) -> str:
    """What to call something in a refusal."""
    if isinstance(made, type):
        return f"the class {made.__module__}.{made.__qualname__}"
    return f"a {type(made).__qualname__}" if not isinstance(made, Mark) else f"{made}"
