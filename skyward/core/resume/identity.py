"""The identity of a call: a digest that is the same in the next run of the same program, and differs if anything does.

A pickle is no identity: it depends on which strings happen to be one object, on the order of sets, on line numbers, and
cloudpickle puts random numbers into it. So values are walked here. What counts:

- of containers and objects, what pickle would carry, in order (a set's items in any order), and which are one object;
- of arrays, type, shape, memory order and content, which is replaced by its digest if it is large;
- of functions and classes that are sent by value (those of the program itself, lambdas, nested ones), their code
  without line numbers, and all that it refers to;
- of modules that are sent by value, all that is in them;
- of functions, classes and modules that are sent by name, the name, and the digest of where they come from (`Origins`).

False differences only cost time, so anything unknown counts as different. Nothing here reads a file or belongs to a
run.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import struct
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import xxhash

from skyward.core.payload import memory_maps
from skyward.core.payload.by_value import is_asked_for, is_by_name, is_of_the_program
from skyward.core.tasks.several_calls import STAND_INS, NoIdentity

__all__ = ["LARGE", "Hasher", "Origins"]

LARGE = 1 << 20
"""Bytes from which an array's content is looked up in what was read before."""

_DIGESTED = 4096  # bytes from which content is replaced by its digest
_SIZE = 16  # bytes of a digest
_GLOBAL_CODES = frozenset(dis.opmap[name] for name in ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME"))
_IMPORT_CODES = frozenset((dis.opmap["IMPORT_NAME"],))
_ATTRIBUTES = ("__defaults__", "__kwdefaults__", "__annotations__", "__dict__")  # of a function, apart from its code
_NOT_OF_CLASS = frozenset(  # what Python, or a cache, puts into a class; the rest is what the user has written
    ("__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__", "_abc_impl")
)
_NOT_OF_MODULE = frozenset(("__builtins__", "__cached__", "__loader__", "__spec__"))  # of how it was imported


class Origins(Protocol):
    """Returns digests of what names refer to."""

    def __call__(self, module: str, /, *, whole: bool = False) -> bytes:
        """Return what differs when the code of a module, or of one that it imports, differs.

        Parameters
        ----------
        module
            Its name.
        whole
            Whether all modules of a package count, since any of them may be reached through it.
        """
        ...


class _Code:
    """What is derived from one code object, which can't change."""

    __slots__ = ("digest", "imports", "kept", "names")

    def __init__(self, code: types.CodeType) -> None:
        self.kept = code  # so that nothing else gets its id
        names: set[str] = set()
        imports: set[str] = set()
        out: list[bytes] = []
        _encode_code(code, out, names, imports)
        self.digest = _digest(out)
        self.names = tuple(sorted(names))
        self.imports = tuple(sorted(imports))


_codes: dict[int, _Code] = {}  # by the id of the code object
_MAX_CODES = 10_000


def _code(code: types.CodeType) -> _Code:
    known = _codes.get(id(code))
    if known is None:
        if len(_codes) >= _MAX_CODES:  # a program that makes functions without end
            _codes.clear()
        known = _codes[id(code)] = _Code(code)
    return known


def _encode_code(code: types.CodeType, out: list[bytes], names: set[str], imports: set[str]) -> None:
    """Append what a code object does, and collect the globals and modules that it may look up."""
    shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    words = (code.co_name, *code.co_names, "", *code.co_varnames, "", *code.co_freevars, "", *code.co_cellvars)
    out += (b"code", repr((shape, words)).encode("utf-8", "surrogatepass"), code.co_code)
    out.append(getattr(code, "co_exceptiontable", b""))
    for instruction in dis.get_instructions(code):
        if instruction.opcode in _GLOBAL_CODES:
            names.add(str(instruction.argval))
        elif instruction.opcode in _IMPORT_CODES:
            imports.add(str(instruction.argval))
    hasher = Hasher(_nowhere)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _encode_code(constant, out, names, imports)
        else:
            out.append(hasher.of(constant))


def _nowhere(_module: str, /, *, whole: bool = False) -> bytes:  # noqa: ARG001 - it has a protocol to keep
    return b""


def _digest(parts: Sequence[bytes]) -> bytes:
    """Digest parts, each with its length, so that moving a byte from one to the next is a difference."""
    state = hashlib.blake2b(digest_size=_SIZE)
    state.update(b"".join([struct.pack("<Q", len(part)) + part for part in parts]))
    return state.digest()


def _holders(thing: Any, name: str) -> Sequence[str]:
    """Return the top-level modules that have something of a name, in themselves or below: one has defined it.

    Pickle takes the first that it finds, whose version may say nothing of the code.
    """
    own = type(thing).__module__
    if getattr(sys.modules.get(own), name, None) is thing:  # as NumPy has its own ufuncs
        return [own]
    found = {module for module, each in list(sys.modules.items()) if getattr(each, "__dict__", {}).get(name) is thing}
    return sorted({module.partition(".")[0] for module in found if not is_of_the_program(module)})


class Hasher:
    """Digests values. For one thread at a time.

    Parameters
    ----------
    origins
        Returns digests of what names refer to.
    find
        Returns the digest of the content of a large array if it is known; see `ArrayCache.find`.
    """

    def __init__(self, origins: Origins, find: Callable[[memoryview], bytes | None] | None = None) -> None:
        self._origins = origins
        self._find = find
        self._out: list[bytes] = []
        self._memo: dict[int, int] = {}
        self._alive: list[Any] = []  # what the memo knows by its id
        self.found: set[bytes] = set()
        """Digests that `find` knew, without the content having been read for sure."""

    def of(self, value: Any) -> bytes:
        """Return the digest of a value.

        Raises
        ------
        NoIdentity
            Something in it can't be pickled, or is nested too deeply.
        """
        self._out, self._memo, self._alive = [], {}, []
        try:
            self._encode(value)
            return _digest(self._out)
        except NoIdentity:
            raise
        except RecursionError:
            raise NoIdentity("it is nested too deeply") from None
        except Exception as error:  # whatever the user's __reduce__ raises
            raise NoIdentity(f"{type(error).__name__}: {error}") from error
        finally:
            self._out, self._memo, self._alive = [], {}, []

    def _encode(self, value: Any) -> None:
        kind = type(value)
        if (encode := _ATOMS.get(kind)) is not None:
            self._out.append(encode(value))
            return
        if (known := self._memo.get(id(value))) is not None:
            self._out.append(b"again %d" % known)
            return
        self._memo[id(value)] = len(self._memo)
        self._alive.append(value)
        managers = sys.modules.get("multiprocessing.managers")
        if managers is not None and isinstance(value, managers.BaseProxy):
            raise NoIdentity("it has the proxy of a Manager, and may do more than return a result")
        special = self._SPECIAL.get(kind)
        if special is not None:
            special(self, value)
        elif isinstance(value, type):
            self._class(value)
        elif (numpy := sys.modules.get("numpy")) is not None and isinstance(
            value, (numpy.ndarray, numpy.dtype, numpy.generic)
        ):
            self._of_numpy(value, numpy)
        else:
            self._reduced(value)

    # --- containers ---

    def _sequence(self, value: Sequence[Any]) -> None:
        self._out.append(b"%s %d" % (type(value).__name__.encode(), len(value)))
        for item in value:
            self._encode(item)

    def _dict(self, value: Mapping[Any, Any]) -> None:
        self._out.append(b"dict %d" % len(value))
        for key, item in list(value.items()):
            self._encode(key)
            self._encode(item)

    def _set(self, value: set[Any] | frozenset[Any]) -> None:
        """Its items in the order of their digests; Python's order of strings differs from process to process."""
        self._out.append(b"%s %d" % (type(value).__name__.encode(), len(value)))
        self._out += sorted(self._alone(item) for item in value)

    def _alone(self, value: Any) -> bytes:
        inner = Hasher(self._origins, self._find)
        digest = inner.of(value)
        self.found |= inner.found
        return digest

    # --- functions and classes ---

    def _named(self, kind: bytes, module: str, name: str) -> None:
        self._out += (kind, module.encode(), name.encode("utf-8", "surrogatepass"), self._origins(module))

    def _function(self, function: types.FunctionType) -> None:
        if is_by_name(function):
            self._named(b"function", function.__module__, function.__qualname__)
            return
        code = _code(function.__code__)
        self._out += (b"a function", code.digest, str(function.__qualname__).encode("utf-8", "surrogatepass"))
        for name in _ATTRIBUTES:
            self._encode(getattr(function, name) or None)
        for cell in function.__closure__ or ():
            self._cell(cell)
        known = function.__globals__
        used = [name for name in code.names if name in known]
        self._out.append(b"%d" % len(used))
        for name in used:
            self._out.append(name.encode("utf-8", "surrogatepass"))
            self._encode(known[name])
        if code.imports and (package := known.get("__package__")):  # `python -m package.module` may import from it
            self._out += (b"in", str(package).encode(), self._origins(str(package), whole=True))
        for name in code.imports:
            self._out += (b"imports", name.encode(), self._origins(name, whole=True))

    def _cell(self, cell: types.CellType) -> None:
        try:
            value = cell.cell_contents
        except ValueError:
            self._out.append(b"empty")
            return
        self._encode(value)

    def _class(self, kind: type) -> None:
        if is_by_name(kind):
            self._named(b"class", kind.__module__, kind.__qualname__)
            return
        self._out += (b"a class", kind.__qualname__.encode("utf-8", "surrogatepass"))
        self._encode(type(kind))
        self._encode(kind.__bases__)
        written = sorted((name, value) for name, value in vars(kind).items() if name not in _NOT_OF_CLASS)
        self._out.append(b"%d" % len(written))
        for name, value in written:
            self._out.append(name.encode("utf-8", "surrogatepass"))
            self._encode(value)

    def _module(self, module: types.ModuleType) -> None:
        name = module.__name__
        self._out += (b"module", name.encode(), self._origins(name, whole=True))
        known = sys.modules.get(name)
        if known is None or is_asked_for(name):  # as in cloudpickle
            self._encode({key: value for key, value in vars(module).items() if key not in _NOT_OF_MODULE})
        elif getattr(known, "__spec__", None) is None and getattr(known, "__file__", None) is None:
            raise NoIdentity(f"the module {name} was created at run time, so there is no source to compare")

    def _builtin(self, function: types.BuiltinFunctionType) -> None:
        owner = function.__self__
        if owner is None or isinstance(owner, types.ModuleType):
            self._named(b"function", function.__module__ or "builtins", function.__qualname__)
        else:
            self._out += (b"method", function.__name__.encode())
            self._encode(owner)

    def _method(self, method: types.MethodType) -> None:
        self._out.append(b"method")
        self._encode(method.__func__)
        self._encode(method.__self__)

    def _wrapped(self, value: Any) -> None:
        """Encode what a class's attribute wraps."""
        self._out.append(type(value).__name__.encode())
        self._encode(getattr(value, "__func__", None) or getattr(value, "func", None))

    def _property(self, value: property) -> None:
        self._out.append(b"property")
        for part in (value.fget, value.fset, value.fdel):
            self._encode(part)

    def _slot(self, value: Any) -> None:
        """Encode a descriptor that Python has made: its name says all."""
        self._out += (b"slot", value.__name__.encode())

    # --- everything else ---

    def _of_numpy(self, value: Any, numpy: Any) -> None:
        self._out.append(self._origins("numpy"))
        if isinstance(value, numpy.dtype):
            self._out += (b"dtype", repr(value.str).encode())
            is_plain = value.names is None and value.subdtype is None and not value.metadata and not value.hasobject
            if not is_plain or value.type.__module__ != "numpy":  # of others, `str` gives only the size
                self._reduced(value)
        elif type(value) in (numpy.ndarray, numpy.memmap) and not value.dtype.hasobject:
            self._array(value, numpy)
        else:
            self._reduced(value)

    def _array(self, array: Any, numpy: Any) -> None:
        if memory_maps.writes_through(array, numpy):
            raise NoIdentity(
                "it can write into memory or a file that it is given, and may do more than return a result"
            )
        turned = array.flags.f_contiguous and not array.flags.c_contiguous
        self._out += (b"array F" if turned else b"array C", repr(array.shape).encode())
        self._of_numpy(array.dtype, numpy)
        # As core.payload.memory_maps makes it: `find` knows an array by where this memory belongs.
        flat = numpy.ascontiguousarray(array.T if turned else array).reshape(-1).view(numpy.uint8)
        content = memoryview(flat)
        if self._find is not None and content.nbytes >= LARGE and type(array) is numpy.ndarray:
            name = self._find(content)
            if name is not None:
                self.found.add(name)
                self._out.append(name)
                return
        self._out.append(_content(content))

    def _reduced(self, value: Any) -> None:
        """Encode what pickle would carry."""
        kind = type(value)
        if (stand_in := STAND_INS.get((kind.__module__, kind.__qualname__))) is not None:
            self._out += (b"stands for", kind.__module__.encode(), kind.__qualname__.encode())
            self._encode(stand_in(value))
            return
        reduce = copyreg.dispatch_table.get(kind)
        made = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        if isinstance(made, str):
            self._by_name_only(value, made)
            return
        self._alive.append(made)
        parts = [*made, *(None,) * (6 - len(made))]
        self._out.append(b"made")
        for part in parts[:3]:
            self._encode(part)
        for items in parts[3:5]:
            self._encode(None if items is None else list(items))
        self._encode(parts[5])

    def _by_name_only(self, value: Any, name: str) -> None:
        """Encode what pickle knows by a name; what the program itself has defined needs more than that."""
        module = getattr(value, "__module__", None)
        if module is None:  # such as a ufunc
            holders = _holders(value, name)
            if not holders:
                raise NoIdentity(f"no module has {name}")
            self._out += (b"held", name.encode("utf-8", "surrogatepass"))
            self._out += [holder.encode() + b" " + self._origins(holder, whole=True) for holder in holders]
            return
        self._named(b"name", module, name)
        if is_of_the_program(module) and not isinstance(value, (typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple)):
            if (wrapped := getattr(value, "__wrapped__", None) or getattr(value, "__supertype__", None)) is None:
                raise NoIdentity(f"{name} of your program has no source to compare")
            self._encode(wrapped)

    def _of_code(self, code: types.CodeType) -> None:
        self._out.append(_code(code).digest)

    _SPECIAL: ClassVar[dict[type, Callable[[Hasher, Any], None]]] = {
        list: _sequence,
        tuple: _sequence,
        dict: _dict,
        types.MappingProxyType: _dict,
        set: _set,
        frozenset: _set,
        types.FunctionType: _function,
        types.BuiltinFunctionType: _builtin,
        types.MethodType: _method,
        types.ModuleType: _module,
        types.CellType: _cell,
        types.CodeType: _of_code,
        staticmethod: _wrapped,
        classmethod: _wrapped,
        functools.cached_property: _wrapped,
        property: _property,
        types.MemberDescriptorType: _slot,
        types.GetSetDescriptorType: _slot,
    }


def _content(data: Any) -> bytes:
    """Content, or its digest if that is shorter."""
    size = len(data)
    if size < _DIGESTED:
        return bytes(data)
    return size.to_bytes(8, "big") + xxhash.xxh3_128_digest(data)


def _text(value: str) -> bytes:
    return b"s" + _content(value.encode("utf-8", "surrogatepass"))


_ATOMS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"None",
    bool: lambda value: b"True" if value else b"False",
    type(...): lambda _: b"...",
    type(NotImplemented): lambda _: b"NotImplemented",
    int: lambda value: b"i%x" % value,
    float: lambda value: b"f" + struct.pack("<d", value),
    complex: lambda value: b"c" + struct.pack("<dd", value.real, value.imag),
    str: _text,
    bytes: lambda value: b"b" + _content(value),
}
