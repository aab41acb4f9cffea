"""Windows on a file stay windows on it, or can't be written; nothing that is written is lost without a word."""

from __future__ import annotations

import mmap
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import Array, RawArray, shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skyward.core.errors import PayloadError
from skyward.core.payload import memory_maps, pickling
from tests.examples import examples

SHAPE = (6, 4, 5)


def carried(value: Any, **options: Any) -> Any:
    """As a task on the other side gets it."""
    head, buffers = pickling.dumps(value, **options)
    memory_maps.begin_task(files=False)
    return pickling.loads(bytearray(head), [bytearray(buffer) for buffer in buffers])


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Any]:
    """Make a memmap of a file of its own."""

    def made(content: Any = range(8), **options: Any) -> Any:
        numbers = np.asarray(content, dtype=options.pop("dtype", "f8"))
        path = tmp_path / f"map-{len(list(tmp_path.iterdir()))}"
        array = np.memmap(path, **{"dtype": numbers.dtype, "mode": "w+", "shape": numbers.shape, **options})
        array[...] = numbers
        return array

    return made


@examples(60)
@given(
    index=hnp.basic_indices(SHAPE, allow_newaxis=True),
    order=st.sampled_from("CF"),
    offset=st.integers(0, 10_000),
    dtype=st.sampled_from(["f8", ">i4", "u1", "M8[s]", "i2,f8,(3,)u1"]),
    transposed=st.booleans(),
    plain=st.booleans(),
)
def test_every_view_is_a_window_on_the_same_bytes(
    index: Any, order: Any, offset: int, dtype: str, transposed: bool, plain: bool
) -> None:
    """Of any shape, order and alignment: it looks the same, and writing into it is writing into the caller's."""
    with tempfile.TemporaryDirectory() as folder:
        size = np.dtype(dtype).itemsize * 120
        Path(folder, "m").write_bytes(bytes(offset) + bytes(i % 251 for i in range(size)))
        whole = np.memmap(f"{folder}/m", dtype=dtype, mode="r+", offset=offset, shape=SHAPE, order=order)
        index = index if isinstance(index, tuple) else (index,)
        index = index if ... in index else (*index, ...)  # an array also where all places are given
        view = whole[index].T if transposed else whole[index]
        view = np.asarray(view) if plain else view
        back = carried(view, named="all", large=1)
        assert (type(back), back.dtype, back.shape) == (type(view), view.dtype, view.shape)
        if view.size == 0:
            return
        assert back.strides == view.strides
        assert back.tobytes() == view.tobytes()
        expected = np.array(whole)
        expected[index] = np.zeros((), dtype)
        back[...] = np.zeros((), dtype)
        assert whole.tobytes() == expected.tobytes()


def test_what_a_memmap_knows_of_itself_arrives(make: Callable[..., Any]) -> None:
    array = make()
    back = carried({"held": [array]}, named="all")["held"][0]
    assert (back.filename, back.mode, back.offset) == (array.filename, "r+", 0)  # "w+" would make the file anew
    back[0] = 70
    back.flush()
    assert array[0] == 70


def test_a_read_only_map_is_opened_read_only(make: Callable[..., Any]) -> None:
    written = make()
    array = np.memmap(written.filename, dtype="f8", mode="r")
    back = carried(array, named="all")
    assert type(back) is np.memmap
    assert back.mode == "r"
    written[0] = 70
    assert back[0] == 70
    view = written[:3]
    view.flags.writeable = False
    back = carried(view, named="all")
    assert not back.flags.writeable
    written[1] = 71
    assert back[1] == 71


def test_copies_and_copy_on_write_maps_are_private(make: Callable[..., Any], tmp_path: Path) -> None:
    """What the caller wrote into such a map is in no file, and must arrive."""
    array = make()
    private = np.memmap(array.filename, dtype="f8", mode="c")
    private[0] = 70
    for value in (private, array.copy(), array + 1):
        back = carried(value, named="all")
        assert back.tolist() == value.tolist()
        back[1] = 71
    assert array[1] == 1
    (tmp_path / "blob").write_bytes(private.tobytes())
    head, _ = pickling.dumps(private, large=1, mode="r")
    back = pickling.loads(head, [np.memmap(tmp_path / "blob", dtype="u1", mode="c")])
    back[1] = 71
    assert back[:3].tolist() == [70, 71, 2]


class Scaled(np.memmap):  # type: ignore[type-arg,misc]
    """A user's class."""

    def doubled(self) -> Any:
        return np.asarray(self) * 2


@pytest.mark.parametrize("named", ["all", "none"])
def test_subclasses_arrive_as_they_are(make: Callable[..., Any], named: memory_maps.Named) -> None:
    scaled = carried(make().view(Scaled), named=named)
    assert scaled.doubled().tolist() == [2.0 * i for i in range(8)]
    records = make(np.zeros(4), dtype="f8").view([("x", "f4"), ("y", "i4")]).view(np.recarray)
    back = carried(records, named=named)
    assert type(back) is np.recarray
    assert back.y.tolist() == [0] * 4
    assert (scaled.flags.writeable, back.flags.writeable) == (named == "all", named == "all")


def test_one_that_pickles_itself_is_refused_where_writing_would_be_lost(make: Callable[..., Any]) -> None:
    array = make()
    with pytest.raises(PayloadError, match=r"MaskedArray over the numpy.memmap of .*map-0.*\.copy\(\)"):
        pickling.dumps(np.ma.array(array, copy=False))
    read = np.memmap(array.filename, dtype="f8", mode="r")
    assert carried(np.ma.array(read, copy=False)).sum() == 28


# --- where the file can't be had ---


def written_into(array: Any) -> list[str]:
    """Try it, as a task would; what its error says besides numpy's own words."""
    with pytest.raises(ValueError, match="read-only") as caught:
        array[0] = 1
    memory_maps.explain(caught.value)
    return getattr(caught.value, "__notes__", [])


@pytest.mark.parametrize("large", [None, 1, 1 << 20])
def test_elsewhere_the_content_arrives_read_only(make: Callable[..., Any], large: int | None) -> None:
    array = make(range(8))
    back = carried([array, array[::-2], np.asarray(array)], large=large)
    assert [part.tolist() for part in back] == [array.tolist(), array[::-2].tolist(), array.tolist()]
    for part in back:
        assert not part.flags.writeable
        (note,) = written_into(part)
        assert str(array.filename) in note
        assert "some nodes of the pool can't access" in note
        with pytest.raises(ValueError, match="WRITEABLE"):
            part.flags.writeable = True
    assert written_into(carried(np.memmap(array.filename, dtype="f8", mode="r"))) == []


def test_other_errors_and_other_tasks_are_not_explained(make: Callable[..., Any]) -> None:
    error, later = ValueError("shape mismatch"), ValueError("assignment destination is read-only")
    carried(make())
    memory_maps.explain(error)
    memory_maps.begin_task(files=False)
    memory_maps.explain(later)
    assert not hasattr(error, "__notes__")
    assert not hasattr(later, "__notes__")


def test_a_file_that_was_removed_or_replaced_is_not_written(make: Callable[..., Any]) -> None:
    array = make()
    Path(array.filename).unlink()
    assert "removed or replaced" in written_into(carried(array, named="all"))[0]
    Path(array.filename).write_bytes(bytes(array.nbytes))
    back = carried(array, named="all")
    assert back.tolist() == array.tolist()
    assert "removed or replaced" in written_into(back)[0]
    assert Path(array.filename).read_bytes() == bytes(array.nbytes)


def test_a_file_that_was_known_is_compared_again(make: Callable[..., Any], tmp_path: Path) -> None:
    array = make()
    assert carried(array, named="all").flags.writeable
    Path(array.filename).rename(tmp_path / "elsewhere")
    Path(array.filename).write_bytes(bytes(array.nbytes))
    assert not carried(array, named="all").flags.writeable


def test_a_file_without_a_name(tmp_path: Path) -> None:
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.write(bytes(80))
        file.flush()
        array = np.memmap(file, dtype="f8", mode="r+")
        assert "no name" in written_into(carried(array, named="all"))[0]


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_a_truncated_file_is_an_error_and_not_the_end_of_the_process(make: Callable[..., Any], mode: Any) -> None:
    array = np.memmap(make(range(4096)).filename, dtype="f8", mode=mode)
    os.truncate(array.filename, 100)
    for named in ("all", "none", "given"):
        with pytest.raises(PayloadError, match="truncated to 100"):
            pickling.dumps(array, named=named)


def test_what_happens_to_a_file_on_the_way_is_an_error(make: Callable[..., Any]) -> None:
    array = make(range(4096))
    head, _ = pickling.dumps(array, named="all")
    os.truncate(array.filename, 100)
    with pytest.raises(PayloadError, match="truncated to 100 bytes; keep the file"):
        pickling.loads(head)
    assert Path(array.filename).stat().st_size == 100, "numpy would have made it longer"
    Path(array.filename).unlink()
    with pytest.raises(PayloadError, match="No such file"):
        pickling.loads(head)
    Path(array.filename).write_bytes(bytes(array.nbytes))
    with pytest.raises(PayloadError, match="another file has that name"):
        pickling.loads(head)


# --- shared memory without a name ---


@pytest.fixture
def segment() -> Iterator[shared_memory.SharedMemory]:
    memory = shared_memory.SharedMemory(create=True, size=800)
    yield memory
    memory.close()
    memory.unlink()


def test_arrays_in_memory_that_is_shared_are_read_only(segment: shared_memory.SharedMemory) -> None:
    """There is nobody else who sees what a task writes there."""
    anonymous = mmap.mmap(-1, 800)
    arrays: list[Any] = [
        np.frombuffer(anonymous),
        np.ndarray(100, buffer=anonymous)[::3],
        np.frombuffer(memoryview(anonymous)[80:]),
        np.frombuffer(RawArray("d", 100)),
        np.ctypeslib.as_array(Array("d", 100).get_obj()),
        np.ndarray(100, buffer=segment.buf),
    ]
    for array in arrays:
        for named in ("all", "none"):
            back = carried(array, named=named)
            assert back.tolist() == array.tolist()
            assert "an array in shared memory" in written_into(back)[0]
    del array, arrays


def test_arrays_in_private_maps_stay_writeable(tmp_path: Path) -> None:
    """As those that our own buffers are of, such as large results."""
    (tmp_path / "file").write_bytes(bytes(800))
    with (tmp_path / "file").open("r+b") as file:
        private = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    anonymous = mmap.mmap(-1, 800, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for memory in (private, anonymous):
        carried(np.frombuffer(memory), named="all")[0] = 1


# --- results ---


def test_a_result_is_the_callers_map_or_a_value(make: Callable[..., Any]) -> None:
    """What a task has made may be written again by the next one, so a name would not do."""
    array = make()
    given = carried(array, named="all")
    back = carried(given[2:4], named="given")
    back[0] = 70
    assert array[2] == 70
    made = make()
    back = carried(made, named="given")
    made[:] = 0
    assert back.tolist() == list(range(8))
    assert written_into(back) == []
    seen = carried(np.memmap(array.filename, dtype="f8", mode="r"), named="given")
    array[:] = 0
    assert seen.tolist() == [0, 1, 70, *range(3, 8)]


# --- large arrays ---


def test_mmap_mode_for_writing_warns_where_it_means_something_else(make: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match="its own copy-on-write map"):
        back = carried(np.zeros(1000), large=1000, mode="r+")
    assert back.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        carried([np.zeros(10), make(range(1000))], large=1000, mode="r+", named="all")


def test_the_next_task_maps_the_same_file_again_and_the_one_after_not_another(tmp_path: Path) -> None:
    """A file's name may be another file's by then."""
    maps, path = memory_maps.Maps(), tmp_path / "blob"

    def load(content: bytes | None = None) -> Any:
        if content is not None:
            path.unlink(missing_ok=True)
            path.write_bytes(content)
        maps.next_task()
        return maps.read_only(np.memmap(path, dtype=np.uint8, mode="c"), np)

    first = load(b"one")
    assert not first.flags.writeable
    assert load() is first
    assert load(b"two").tobytes() == b"two"
    assert first.tobytes() == b"one"
    assert len(maps._now) == 1
    assert len(maps._before) == 1
