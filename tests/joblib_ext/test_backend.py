"""joblib's documented behaviour, on a pool."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import pickle
import threading
import time

import joblib
import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import BACKENDS, SequentialBackend, ThreadingBackend, get_active_backend

import skyward as sky
from skyward.core.errors import PayloadError
from skyward.core.interfaces import Trait
from skyward.core.payload.exceptions import RemoteTraceback
from skyward.joblib_ext.backend import SkywardBackend
from tests.joblib_ext.calls import (
    Holder,
    Odd,
    bad_begin,
    begin,
    blas,
    by_name,
    fail,
    fail_as_cancelled,
    fill,
    fill_held,
    inside,
    look_at,
    nap,
    nap_and_sum,
    overlap,
    square,
    square_later,
    state,
    where,
    write_into,
)
from tests.lab import eventually

pytestmark = pytest.mark.usefixtures("pool")


# --- how many ---


@pytest.mark.parametrize(("asked", "got"), [(-1, 4), (-2, 3), (-4, 1), (-9, 1), (1, 1), (3, 3), (20, 20), (None, 1)])
def test_n_jobs_counts_as_joblib_defines(asked, got):
    assert joblib.effective_n_jobs(asked) == got


def test_zero_jobs_is_an_error():
    with pytest.raises(ValueError, match="n_jobs == 0 in Parallel has no meaning"):
        Parallel(n_jobs=0)([delayed(square)(1)])


@pytest.mark.parametrize("n_jobs", [1, None])
def test_one_job_is_the_plain_loop_here(n_jobs):
    assert Parallel(n_jobs=n_jobs)([delayed(where)()] * 3) == [os.getpid()] * 3


def test_all_jobs_run_in_other_processes():
    pids = Parallel(n_jobs=-1, batch_size=1)(delayed(where)() for _ in range(50))
    assert os.getpid() not in pids


@pytest.mark.slow
def test_all_slots_of_a_single_slot_run_there_too():
    with sky.Compute(plugins=[sky.plugins.joblib()], console=False):
        assert joblib.effective_n_jobs(-1) == 1
        with Parallel(n_jobs=-1) as parallel:
            assert os.getpid() not in parallel(delayed(where)() for _ in range(3))
        assert os.getpid() not in Parallel(n_jobs=-2)(delayed(where)() for _ in range(3))


@pytest.mark.parametrize("n_jobs", [2, 3])
def test_a_number_of_jobs_is_kept_to(tmp_path, n_jobs):
    def most() -> int:
        parallel = Parallel(n_jobs=n_jobs, pre_dispatch="all", batch_size=1)
        count = max(parallel(delayed(overlap)(tmp_path, i) for i in range(16)))
        assert count <= n_jobs
        return count

    eventually(lambda: most() == n_jobs)  # slots that an earlier test has lost may not be there again


def test_without_a_word_n_jobs_of_the_context_counts():
    with parallel_config(n_jobs=2):
        assert Parallel().n_jobs == 2
        assert os.getpid() not in Parallel()(delayed(where)() for _ in range(4))


# --- results, in which order and when ---


def test_order_is_kept():
    assert Parallel(n_jobs=-1)(delayed(square)(i) for i in range(500)) == [i**2 for i in range(500)]


def test_lambdas_and_closures():
    offset = 7
    assert Parallel(n_jobs=2)(delayed(lambda x: x + offset)(i) for i in range(5)) == [7, 8, 9, 10, 11]


def test_generator_gives_results_before_all_are_there():
    out = Parallel(n_jobs=2, return_as="generator", batch_size=1)(delayed(square)(i) for i in range(20))
    assert next(out) == 0
    assert list(out) == [i**2 for i in range(1, 20)]


def test_unordered_generator_gives_the_fastest_first():
    out = Parallel(n_jobs=2, return_as="generator_unordered", batch_size=1)(delayed(nap)(s) for s in (0.5, 0, 0, 0))
    assert [next(out) for _ in range(4)] == [0, 0, 0, 0.5]


def test_a_generator_left_alone_ends_its_tasks_and_no_others(pool):
    out = Parallel(n_jobs=4, return_as="generator", batch_size=1)(delayed(nap)(s) for s in (0, 60, 60, 60, 60))
    other = Parallel(n_jobs=4, return_as="generator", batch_size=1)(delayed(nap)(0.01) for _ in range(20))
    assert next(out) == 0
    began = time.monotonic()
    with pytest.warns(UserWarning, match="still being processed"):
        del out
    assert list(other) == [0.01] * 20
    assert time.monotonic() - began < 10


def test_pre_dispatch_is_lazy(tmp_path):
    gate, pulled = tmp_path / "gate", []

    def items():
        for i in range(40):
            pulled.append(i)
            yield delayed(square_later)(i, gate)

    out = Parallel(n_jobs=2, return_as="generator", batch_size=1, pre_dispatch=4)(items())
    assert len(pulled) <= 8  # and stays so: no task ends before the gate is open
    gate.touch()
    assert list(out) == [i**2 for i in range(40)]


def test_a_parallel_object_can_be_used_again():
    with Parallel(n_jobs=2) as parallel:
        assert parallel(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]
        with pytest.raises(ZeroDivisionError):
            parallel(delayed(divmod)(1, i) for i in (1, 0))
        assert parallel(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]
    assert parallel(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize("managed", [True, False])
def test_results_of_a_call_that_failed_are_not_those_of_the_next(managed, return_as):
    """joblib makes a batch for each job at a time, and forgets to drop the rest when a call fails."""
    parallel = Parallel(n_jobs=4, batch_size=2, return_as=return_as)
    with parallel if managed else contextlib.nullcontext():
        with pytest.raises(ZeroDivisionError):
            list(parallel(delayed(divmod)(1, i % 7) for i in range(60)))
        assert sorted(parallel(delayed(square)(i) for i in range(60))) == [i**2 for i in range(60)]


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize("pre_dispatch", ["all", "2*n_jobs"])
@pytest.mark.parametrize("before", [0, 4])
def test_an_iterator_that_fails_early(before, pre_dispatch, return_as):
    """joblib looks for errors only while it waits for results, and there may be none to wait for."""

    def calls():
        yield from [delayed(square)(number) for number in range(before)]
        raise KeyError("from the iterator")

    with pytest.raises(KeyError, match="from the iterator"):
        list(Parallel(n_jobs=2, pre_dispatch=pre_dispatch, return_as=return_as, batch_size=1)(calls()))


class Counting(SkywardBackend):
    """As in scikit-learn's `test_backend_respected`."""

    def __init__(self, *args, **kwargs):
        self.count = 0
        super().__init__(*args, **kwargs)

    def start_call(self):
        self.count += 1
        return super().start_call()


def test_the_backend_of_a_configuration_is_told_of_its_calls():
    with parallel_config(backend=Counting()) as config:
        for _ in range(3):
            Parallel(n_jobs=2)([delayed(square)(2)])
        assert config["backend"].count == 3
        with pytest.raises(PayloadError):
            Parallel(n_jobs=2, initializer=threading.Lock().acquire)([delayed(square)(2)])
        with Parallel(n_jobs=2) as first, Parallel(n_jobs=2) as second:
            assert first._backend is config["backend"]
            assert second._backend is not first._backend
            assert first(delayed(square)(i) for i in (1, 2)) == second(delayed(square)(i) for i in (1, 2))
        assert config["backend"].count == 4


def test_auto_batches_grow_for_small_tasks(capsys):
    Parallel(n_jobs=2, verbose=10)(delayed(square)(i) for i in range(3000))
    assert "Setting batch_size=16." in capsys.readouterr().err


def test_auto_batches_grow_fast_only_while_they_are_very_short():
    """And never beyond what a slot needs some tenths of a second for, however little its tasks do."""
    backend = SkywardBackend()
    backend.parallel = Parallel(n_jobs=2)

    def next_size(after, seconds):
        backend._took.seconds = seconds
        backend.batch_completed(after, 100.0)
        return backend.compute_batch_size()

    assert [next_size(1, 1e-6), next_size(4, 1e-6), next_size(16, 0.003)] == [4, 16, 64]
    assert [next_size(64, 0.006), next_size(128, 0.01)] == [128, 256]
    assert [next_size(256, 0.19), next_size(512, 0.3)] == [512, 512]
    sizes = [512]
    while len(sizes) < 20:
        sizes.append(next_size(sizes[-1], 0.0))
    assert sizes[-1] == sizes[-2] < 100_000


@pytest.mark.slow
def test_auto_batches_stay_small_for_long_tasks(capsys):
    """Long ones wait for a slot; joblib's own clock would count the waiting."""
    Parallel(n_jobs=2, verbose=10, pre_dispatch="all")(delayed(nap)(0.25) for _ in range(8))
    assert "Setting batch_size" not in capsys.readouterr().err


def test_verbose_prints_what_joblib_prints(capsys):
    Parallel(n_jobs=2, verbose=10, batch_size=1)(delayed(square)(i) for i in range(10))
    said = capsys.readouterr().err
    assert "[Parallel(n_jobs=2)]: Using backend SkywardBackend with 2 concurrent workers." in said
    assert "Done  10 out of  10 | elapsed:" in said
    Parallel(n_jobs=2, verbose=60, batch_size=1)(delayed(square)(i) for i in range(2))
    assert "Done   2 out of   2" in capsys.readouterr().out


def test_timeout_of_joblib_ends_the_call_and_frees_the_slots():
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(n_jobs=4, timeout=0.2)(delayed(nap)(60) for _ in range(4))
    began = time.monotonic()
    assert Parallel(n_jobs=4)(delayed(square)(i) for i in range(8)) == [i**2 for i in range(8)]
    assert time.monotonic() - began < 10


# --- exceptions ---


def test_exceptions_keep_type_attributes_cause_and_traceback():
    with pytest.raises(Odd, match="7 and") as caught:
        Parallel(n_jobs=2)(delayed(fail)(i) for i in [7])
    error = caught.value
    assert (error.one, error.two) == (7, threading.Event)
    assert isinstance(error.__cause__, KeyError)
    assert isinstance(error.__cause__.__cause__, RemoteTraceback)
    assert "in fail" in str(error.__cause__.__cause__)


def test_a_cancelled_error_of_the_tasks_own_stays_one():
    with pytest.raises(concurrent.futures.CancelledError, match="own"):
        Parallel(n_jobs=2)(delayed(fail_as_cancelled)(i) for i in [7])


# --- nested ---


def test_nested_calls_use_threads_of_the_slot_and_then_none():
    with parallel_config(backend="skyward", n_jobs=2):
        levels = Parallel(n_jobs=2)([delayed(inside)(2)])[0]
    assert levels == [("ThreadingBackend", 1), ("SequentialBackend", 2), ("SequentialBackend", 2)]


def test_tasks_may_name_the_backend_and_get_their_own_slot():
    assert Parallel(n_jobs=2)([delayed(by_name)()] * 2) == [("skyward.joblib_ext", True, [0, 1, 4])] * 2


@pytest.mark.slow
def test_tasks_may_name_the_backend_in_a_pool_without_the_plugin():
    with sky.Compute(concurrency=2, console=False) as plain, parallel_config(backend=SkywardBackend(plain)):
        assert Parallel(n_jobs=2)([delayed(by_name)()] * 2) == [("skyward.joblib_ext", True, [0, 1, 4])] * 2


def test_a_pool_never_travels():
    backend = get_active_backend()[0]
    assert isinstance(backend, SkywardBackend)
    copy = pickle.loads(pickle.dumps(backend))
    assert copy._given is None
    names = Parallel(n_jobs=2)([delayed(lambda it: type(it).__name__)(backend)] * 2)
    assert names == [SkywardBackend.__name__] * 2


def test_shared_memory_is_given_by_threads_here():
    seen = []
    Parallel(n_jobs=2, require="sharedmem")(delayed(seen.append)(i) for i in range(3))
    assert sorted(seen) == [0, 1, 2]
    assert type(Parallel(n_jobs=2, require="sharedmem")._backend) is ThreadingBackend


def test_n_jobs_1_leaves_the_backend_to_inner_calls():
    def inner():
        return Parallel(n_jobs=2)(delayed(where)() for _ in range(3))

    assert os.getpid() not in Parallel(n_jobs=1)([delayed(inner)()])[0]
    assert type(Parallel(n_jobs=1)._backend) is SkywardBackend
    assert SequentialBackend is BACKENDS["sequential"]


# --- settings ---


def test_inner_max_num_threads_limits_libraries():
    with parallel_config(backend="skyward", inner_max_num_threads=2):
        for variable, limits in Parallel(n_jobs=2)(delayed(blas)(i) for i in range(4)):
            assert variable == "2"
            assert limits <= {1, 2}
    default = str(max((os.cpu_count() or 1) // 2, 1))
    assert {variable for variable, _ in Parallel(n_jobs=2)(delayed(blas)(i) for i in range(4))} == {default}


def test_inner_max_num_threads_may_be_a_number_of_numpys():
    numpy = pytest.importorskip("numpy")
    with parallel_config(backend="skyward", inner_max_num_threads=numpy.int64(2)):
        assert {variable for variable, _ in Parallel(n_jobs=2, timeout=30)(delayed(blas)(i) for i in range(2))} == {"2"}


def test_large_arrays_are_read_only_maps():
    numpy = pytest.importorskip("numpy")
    array = numpy.ones(300_000)
    assert Parallel(n_jobs=2)([delayed(look_at)(array)] * 2) == [(True, False, 300_000.0)] * 2


def test_small_arrays_and_unlimited_ones_are_plain():
    numpy = pytest.importorskip("numpy")
    array = numpy.ones(300_000)
    assert Parallel(n_jobs=2)([delayed(look_at)(array[:10])] * 2)[0][:2] == (False, True)
    assert Parallel(n_jobs=2, max_nbytes=None)([delayed(look_at)(array)] * 2)[0][0] is False
    assert Parallel(n_jobs=2, mmap_mode=None)([delayed(look_at)(array)] * 2)[0][0] is False


def test_copy_on_write_maps_are_written_by_one_task_only():
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(300_000)
    assert Parallel(n_jobs=4, mmap_mode="c", batch_size=1)([delayed(write_into)(array)] * 8) == [(5.0, 5.0)] * 8
    assert array[0] == 0


@pytest.mark.parametrize("size", [8, 300_000])
@pytest.mark.parametrize("options", [{}, {"max_nbytes": None}, {"mmap_mode": "r+"}, {"mmap_mode": None}])
def test_tasks_on_this_machine_write_into_the_callers_memmap(tmp_path, size, options):
    """joblib's documented way of filling one array in parallel."""
    numpy = pytest.importorskip("numpy")
    output = numpy.memmap(tmp_path / "output", dtype=float, mode="w+", shape=size)
    parts = Parallel(n_jobs=-1, **options)(delayed(fill)(output[i : i + 1], i + 1) for i in range(8))
    assert output[:8].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    parts[0][0] = 70
    assert output[0] == 70, "what a task returns of it is still the caller's"
    Parallel(n_jobs=-1, **options)(delayed(fill_held)({"at": Holder(output)}, i) for i in range(8))
    assert output[:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.slow
def test_submitted_calls_closures_and_initializers_write_too(tmp_path, pool):
    numpy = pytest.importorskip("numpy")
    output = numpy.memmap(tmp_path / "output", dtype=float, mode="w+", shape=4)
    pool.submit(fill, output[:1], 1).result(60)
    pool.submit(lambda: fill(output[1:2], 2)).result(60)
    Parallel(n_jobs=2, initializer=fill, initargs=(output[2:], 3))(delayed(square)(i) for i in range(2))
    assert output.tolist() == [1, 2, 3, 3]


class Elsewhere(sky.Local):
    """Nodes of this machine that are taken for others."""

    traits = sky.Local.traits - {Trait.DRIVER_ENVIRONMENT}


@pytest.mark.slow
@pytest.mark.parametrize("provider", [Elsewhere(), [sky.Local(), Elsewhere()]], ids=["elsewhere", "mixed"])
def test_tasks_that_may_run_elsewhere_can_only_read_it(tmp_path, provider):
    numpy = pytest.importorskip("numpy")
    output = numpy.memmap(tmp_path / "output", dtype=float, mode="w+", shape=4)
    output[:] = 3

    def read(array):
        return float(array.sum())

    def write(array):
        array[0] = 1

    with sky.Compute(provider=provider, nodes=2, concurrency=1, console=False) as pool:
        assert pool.submit(read, output).result(60) == 12
        for _ in range(4):
            with pytest.raises(ValueError, match="read-only") as caught:
                pool.submit(write, output).result(60)
            assert "some nodes of the pool can't access your program's files" in caught.value.__notes__[0]
            assert "return results and write them in the caller" in str(caught.value.__cause__)
    assert output.tolist() == [3] * 4


@pytest.mark.slow
def test_mmap_modes_for_writing_warn_and_unknown_ones_are_an_error():
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(300_000)
    with pytest.warns(UserWarning, match="its own copy-on-write map"):
        assert Parallel(n_jobs=2, mmap_mode="w+")([delayed(write_into)(array)] * 2) == [(5.0, 5.0)] * 2
    with pytest.raises(sky.ConfigError, match="mmap_mode='rw': it must be one of 'r', 'c', 'r\\+', 'w\\+' or None"):
        Parallel(n_jobs=2, mmap_mode="rw")([delayed(write_into)(array)] * 2)


def changing(array):
    """The same array again and again, with another element that is set."""
    for index in range(6):
        array[600 + index * 20_000] = 1
        yield delayed(nap_and_sum)(array)


@pytest.mark.slow
def test_elements_that_change_between_tasks_are_seen():
    """Of one slot, as joblib takes a task for each slot at once, and they have the same array."""
    numpy = pytest.importorskip("numpy")
    with sky.Compute(concurrency=1, plugins=[sky.plugins.joblib()], console=False):
        assert Parallel(n_jobs=-1, batch_size=1)(changing(numpy.zeros(300_000))) == [1, 2, 3, 4, 5, 6]


def test_arrays_without_a_map_can_be_written():
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(300_000)
    assert Parallel(n_jobs=2, max_nbytes=None)([delayed(write_into)(array)] * 2) == [(5.0, 5.0)] * 2


def test_initializer_runs_once_in_each_slot_and_for_each_set_of_arguments():
    first = Parallel(n_jobs=4, batch_size=1, initializer=begin, initargs=("a",))([delayed(state)()] * 40)
    again = Parallel(n_jobs=4, batch_size=1, initializer=begin, initargs=("a",))([delayed(state)()] * 40)
    other = Parallel(n_jobs=4, batch_size=1, initializer=begin, initargs=("b",))([delayed(state)()] * 40)
    assert {tuple(seen) for seen in first + again} == {("a",)}
    assert {tuple(seen) for seen in other} <= {("a", "b"), ("b",)}


def test_initializer_that_fails_fails_the_call():
    with pytest.raises(RuntimeError, match="not today"):
        Parallel(n_jobs=2, initializer=bad_begin)([delayed(state)()] * 4)


def test_unknown_settings_are_named():
    with pytest.warns(UserWarning, match="ignores 'colour'"):
        Parallel(n_jobs=2, colour="red")([delayed(square)(2)])


@pytest.mark.slow
def test_old_joblib_calls_apply_async(monkeypatch):
    """joblib up to 1.4 knows that name only."""
    called = []
    apply_async = SkywardBackend.apply_async

    def submit(self, func, callback=None):
        called.append(1)
        monkeypatch.undo()
        return apply_async(self, func, callback)

    monkeypatch.setattr(SkywardBackend, "submit", submit)
    assert Parallel(n_jobs=2)(delayed(square)(i) for i in range(3)) == [0, 1, 4]
    assert called == [1]


@pytest.mark.slow
def test_the_name_works_in_a_pool_without_the_plugin():
    """`parallel_config(backend="skyward")` inside an open pool uses that pool."""
    with sky.Compute(concurrency=2, console=False), parallel_config(backend="skyward"):
        assert Parallel(n_jobs=-1)(delayed(abs)(i) for i in range(-3, 0)) == [3, 2, 1]
