"""numpy's values come back as they were; types and arrays that lie about their memory are refused."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from skyward.core.payload import pickling
from skyward.core.results.names import Allowed, Trusted
from skyward.core.results.rules import RefusedPickle
from skyward.core.results.unpickler import loads
from tests.core.results.hostile import Reduced, assemble, binary, call, name, plain, read, text

np = pytest.importorskip("numpy")

VALUES = [
    *(np.arange(3), np.arange(10)[::2], np.asfortranarray(np.ones((3, 4))), np.zeros((0, 3)), np.array(3.5)),
    *(np.arange(100_000), np.transpose(np.arange(24.0).reshape(2, 3, 4), (1, 2, 0)), np.array([1], ">i4")),
    *(np.array(["a", "bb"]), np.array([b"x"]), np.array([True]), np.array([1j]), np.array(["2020"], "M8[ns]")),
    *(np.array([1, 2], "m8[3s]"), np.array(["a", None, [1]], object), np.array([[1, 2], [3, 4]], object)),
    np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
    np.zeros(3, np.dtype([("a", "i4", (2,)), ("b", "U3")], align=True)),
    np.zeros(2, np.dtype({"names": ["a"], "formats": ["i4"], "titles": ["T"], "offsets": [2], "itemsize": 10})),
    np.array([(1, "x")], [("a", "i4"), ("b", object)]),
    *(np.arange(2.0).view(np.matrix), np.rec.array([(1, 2.0)], names="a,b")),
    np.ma.array([1, 2], mask=[0, 1], fill_value=7),
    np.ma.array(["a", 1.5], dtype=object, mask=[1, 0]),
    *(np.float64(1.5), np.int8(3), np.str_("x"), np.datetime64("2020"), np.array([(1,)], [("a", "i4")])[0]),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__} {np.asarray(value).dtype}")
@pytest.mark.parametrize("in_band", [False, True])
def test_values_come_back(value, in_band):
    if in_band:
        back = read(pickle.dumps([value], protocol=5))[0]
    else:
        head, buffers = pickling.dumps([value], large=None)
        back = loads(head, [bytearray(buffer) for buffer in buffers], Allowed(Trusted()))[0]
    assert type(back) is type(value)
    assert back.dtype == value.dtype
    np.testing.assert_array_equal(np.ma.getdata(back), np.ma.getdata(value))
    np.testing.assert_array_equal(np.ma.getmaskarray(back), np.ma.getmaskarray(value))
    assert getattr(back, "fill_value", 0) == getattr(value, "fill_value", 0)
    if isinstance(value, np.ndarray):
        assert back.flags.f_contiguous == value.flags.f_contiguous or not value.flags.forc


@pytest.mark.parametrize("value", [np.float32, np.dtype("f4"), np.dtype([("a", "i4")]), np.sin, np.ma.masked, np.mean])
def test_names_come_back(value):
    back = read(pickle.dumps(value, protocol=5))
    assert back is value or (back == value and isinstance(value, np.dtype))


@pytest.mark.parametrize("kind", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_random_generators_go_on_where_they_were(kind):
    for made in (np.random.Generator, np.random.RandomState):
        if made is np.random.RandomState and kind != "MT19937":
            continue
        generator = made(getattr(np.random, kind)(5))
        generator.standard_normal(3)
        back = read(pickle.dumps(generator, protocol=5))
        assert (back.standard_normal(700) == generator.standard_normal(700)).all()
    seeds = np.random.SeedSequence(5, spawn_key=(1,))
    seeds.spawn(2)
    back = read(pickle.dumps(seeds, protocol=5))
    assert (back.spawn(1)[0].generate_state(4) == seeds.spawn(1)[0].generate_state(4)).all()


# --- lies ---


def dtype(spec: bytes, *state: bytes) -> bytes:
    return call("numpy", "dtype", spec, b"\x89", b"\x88") + b"(" + b"".join(state) + b"tb"


def simple(spec: str, order: str = "<", size: int = -1, flags: int = 0) -> bytes:
    return dtype(text(spec), *(plain(value) for value in (3, order, None, None, None, size, -1, flags)))


def fields(offset: int, size: int, flags: int, kind: bytes) -> bytes:
    """A structure of one field."""
    state = [plain(3), text("|"), b"N", b"(" + text("a") + b"t"]
    state += [b"}" + text("a") + kind + plain(offset) + b"\x86s", plain(size), plain(1), plain(flags)]
    return dtype(text(f"V{size}"), *state)


def array(kind: bytes, raw: bytes, shape: Any = (1,)) -> bytes:
    made = call("numpy._core.multiarray", "_reconstruct", name("numpy", "ndarray"), plain((0,)), plain(b"b"))
    return made + b"(" + plain(1) + plain(shape) + kind + b"\x89" + raw + b"tb"


def frombuffer(kind: bytes, buffer: bytes = binary(bytes(8)), shape: Any = (1,)) -> bytes:
    return call("numpy._core.numeric", "_frombuffer", buffer, kind, plain(shape), text("C"))


LIES = {
    "a type of objects that says it holds none": simple("O8", "|", flags=0),
    "a type of a field of objects that says so": fields(0, 8, 0, simple("O8", "|", flags=63)),
    "a type of another alignment": dtype(text("i8"), *(plain(v) for v in (3, "<", None, None, None, -1, 64, 0))),
    "objects that are bytes": array(simple("O8", "|", flags=0), binary(bytes(8))),
    "objects in a buffer": frombuffer(simple("O8", "|", flags=0)),
    "objects in a field": frombuffer(fields(0, 8, 0, simple("O8", "|", flags=63))),
    "a field beyond the end": frombuffer(fields(1_000_000, 8, 0, simple("i8"))),
    "a field before the beginning": frombuffer(fields(-8, 8, 0, simple("i8"))),
    "a larger type than it says": frombuffer(simple("i8", size=800)),
    "more than there is": array(simple("i8"), binary(bytes(8)), (1000,)),
    "fewer than nothing": array(simple("i8"), binary(bytes(8)), (-1, -1)),
    "more than there is in a buffer": frombuffer(simple("i8"), shape=(1000,)),
    "a list of no objects": array(simple("i8"), plain([1])),
    "a type that is unfinished": frombuffer(call("numpy", "dtype", text("i8"), b"\x89", b"\x88")),
    "a type of no name": dtype(text("os"), *(plain(value) for value in (3, "|", None, None, None, -1, -1, 0))),
    "a type by its structure": dtype(text("i4,i4"), *(plain(v) for v in (3, "|", None, None, None, -1, -1, 0))),
    "a type of what is no text": dtype(name("builtins", "int"), plain(3)),
    "a unit": dtype(
        text("M8"), *(plain(v) for v in (4, "<", None, None, None, -1, -1, 0, (None, (b"s]+", 1, 1, 1))))
    ),
    "an array that is unfinished": b"]"
    + call("numpy._core.multiarray", "_reconstruct", name("numpy", "ndarray"), plain((0,)), plain(b"b"))
    + b"a",
    "an array of another class": call(
        "numpy._core.multiarray", "_reconstruct", name("collections", "deque"), plain((0,)), plain(b"b")
    ),
    "an array in an array's place": frombuffer(simple("i8"), frombuffer(simple("i8"))),
    "two arrays of one buffer": b"(" + binary(bytes(16)) + b"\x94"
    + frombuffer(simple("i8"), b"h\x00", (2,)) + frombuffer(simple("i4"), b"h\x00", (4,)) + b"t",
    "a number of objects": call("numpy._core.multiarray", "scalar", simple("O8", "|", flags=63), binary(bytes(8))),
    "a number too short": call("numpy._core.multiarray", "scalar", simple("f8"), binary(bytes(4))),
    "bits of another class": call("numpy.random._pickle", "__bit_generator_ctor", name("collections", "deque")),
    "random numbers of no bits": call("numpy.random._pickle", "__generator_ctor", plain([1])),
    "seeds of another class": call(
        "numpy.random.bit_generator", "__pyx_unpickle_SeedSequence", name("collections", "deque"), plain(1), b"N"
    ),
    "a masked array of another class": call(
        *("numpy.ma.core", "_mareconstruct", name("collections", "deque")),
        *(name("numpy", "ndarray"), plain((0,)), plain("b")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_lies_about_memory_are_refused(case):
    with pytest.raises((RefusedPickle, ValueError, TypeError)):  # numpy refuses some itself
        read(assemble(LIES[case]))


def test_the_instructions_above_are_right_but_for_the_lie():
    assert read(assemble(frombuffer(simple("i8")))) == np.zeros(1, "i8")
    assert read(assemble(array(simple("i8"), binary(bytes(8))))) == np.zeros(1, "i8")
    assert read(assemble(frombuffer(fields(0, 8, 16, simple("i8"))))).dtype == np.dtype([("a", "i8")])
    assert read(assemble(call("numpy._core.multiarray", "scalar", simple("f8"), binary(bytes(8))))) == 0.0


def test_a_position_in_random_numbers_is_looked_at():
    state = np.random.RandomState(0).get_state(legacy=False)
    state["state"]["pos"] = 625
    made, args, _ = np.random.RandomState(0).__reduce__()
    with pytest.raises(RefusedPickle, match="random"):
        read(pickle.dumps(Reduced(made, args, state), protocol=5))
    state["state"]["pos"] = 3
    assert read(pickle.dumps(Reduced(made, args, state), protocol=5)).get_state(legacy=False)["state"]["pos"] == 3
