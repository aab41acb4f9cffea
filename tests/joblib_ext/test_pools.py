"""Which pool is meant, and that joblib is left as it was."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from joblib import Parallel, delayed, parallel_backend, parallel_config
from joblib.parallel import BACKENDS, get_active_backend, register_parallel_backend

import skyward as sky
from skyward.integrations import JoblibPool, ScikitLearnPool, SkywardBackend, sklearn_backend


def node_of() -> str:
    """The agent above the slot, which is not shared between pools."""
    pid, found = os.getpid(), "none"
    while pid > 1:
        process = Path(f"/proc/{pid}")
        if "skyward.worker.agent" in (process / "cmdline").read_text():
            found = str(pid)  # or a process that was forked from it
        pid = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def nodes(**options) -> set[str]:
    return set(Parallel(n_jobs=2, batch_size=1, **options)(delayed(node_of)() for _ in range(6)))


def small(**options):
    return sky.Compute(concurrency=2, console=False, **options)


def with_joblib(**options):
    return small(plugins=[sky.plugins.joblib()], **options)


def default():
    return type(get_active_backend()[0])


@pytest.fixture
def before():
    kind = default()
    assert kind is not SkywardBackend
    return kind


def test_the_block_ends_and_joblib_is_as_before(before):
    with with_joblib():
        assert default() is SkywardBackend
        assert Parallel().n_jobs == 1
    assert default() is before


@pytest.mark.slow
def test_an_exception_ends_the_block_and_joblib_is_as_before(before):
    with pytest.raises(ZeroDivisionError), with_joblib():
        Parallel(n_jobs=2)(delayed(divmod)(1, i) for i in (1, 0))
    assert default() is before


@pytest.mark.slow
def test_inner_pools_win_and_give_way_again():
    with with_joblib() as one:
        outer = nodes()
        with with_joblib() as two:
            inner = nodes()
            assert not inner & outer
            with parallel_config(backend=SkywardBackend(one)):
                assert nodes() == outer
            assert nodes(backend="skyward") == inner
            assert two.is_active
        assert nodes() == outer


@pytest.mark.slow
def test_pools_may_end_in_any_order(before):
    one, two = with_joblib(), with_joblib()
    one.start()
    two.start()
    inner = nodes()
    one.close()
    assert nodes() == inner
    two.close()
    assert default() is before


@pytest.mark.slow
def test_a_pool_may_be_closed_by_another_thread(before):
    pool = with_joblib().start()
    closer = threading.Thread(target=pool.close)
    closer.start()
    closer.join()
    assert Parallel(n_jobs=2)(delayed(abs)(i) for i in range(3)) == [0, 1, 2]
    with pytest.raises(sky.PoolNotActive):
        Parallel(n_jobs=2, backend="skyward")(delayed(abs)(i) for i in range(3))
    with with_joblib():
        assert "none" not in nodes()
    assert default() is before


@pytest.mark.slow
def test_several_pools_in_several_threads():
    """Each thread's pool gets that thread's tasks, by configuration and by name."""
    seen: dict[int, tuple[set[str], set[str]]] = {}
    ready = threading.Barrier(3)

    def use(number):
        with with_joblib():
            ready.wait(30)
            seen[number] = nodes(), nodes(backend="skyward")
            ready.wait(30)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(by_config == by_name for by_config, by_name in seen.values())
    assert len(set.union(*(by_config for by_config, _ in seen.values()))) == 3


@pytest.mark.slow
def test_threads_of_the_block_name_the_backend():
    """joblib's configuration is per thread; the name works in all of them."""
    found = []
    with with_joblib():
        thread = threading.Thread(target=lambda: found.append((default(), nodes(backend="skyward"), nodes())))
        here = nodes()
        thread.start()
        thread.join()
    kind, by_name, by_default = found[0]
    assert kind is not SkywardBackend
    assert by_name == here
    assert by_default == {"none"}


@pytest.mark.slow
def test_one_pool_used_by_several_threads():
    results = {}

    def use(number):
        with parallel_config(backend=shared):
            results[number] = Parallel(n_jobs=2)(delayed(pow)(i, number) for i in range(40))

    with with_joblib() as pool:
        shared = SkywardBackend(pool)
        threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {number: [i**number for i in range(40)] for number in range(4)}


def test_a_pool_that_was_not_entered_says_so():
    for backend in (SkywardBackend(small()), SkywardBackend(), "skyward"):
        with pytest.raises(sky.PoolNotActive, match="Backend not configured: use the pool as a context manager"):
            Parallel(n_jobs=-1, backend=backend)(delayed(abs)(i) for i in range(3))
    with pytest.raises(sky.PoolNotActive), sklearn_backend(small()):
        pass


def test_a_pool_that_was_closed_says_so():
    with small() as pool:
        backend = SkywardBackend(pool)
    with pytest.raises(sky.PoolNotActive, match="closed"):
        Parallel(n_jobs=-1, backend=backend)(delayed(abs)(i) for i in range(3))


@pytest.mark.slow
def test_a_factory_of_the_users(monkeypatch):
    monkeypatch.setitem(BACKENDS, "mine", None)
    with small() as pool:
        register_parallel_backend("mine", lambda: SkywardBackend(pool))
        with parallel_backend("mine"):
            assert "none" not in nodes()
            assert Parallel().n_jobs == -1


@pytest.mark.slow
def test_an_instance_as_argument():
    with small() as pool:
        assert "none" not in nodes(backend=SkywardBackend(pool))
        with Parallel(n_jobs=2, backend=SkywardBackend(pool)) as parallel:
            assert "none" not in parallel(delayed(node_of)() for _ in range(3))


@pytest.mark.slow
def test_tasks_have_processes_unless_threads_are_asked_for():
    for executor, count in (("auto", 2), ("process", 2), ("thread", 1)):
        with small_with(executor) as pool, sklearn_backend(pool):
            calls = Parallel(n_jobs=2, batch_size=1)(delayed(meet)(i) for i in range(2))
            assert len(set(calls)) == count


def small_with(executor):
    return sky.Compute(worker=sky.Worker(concurrency=2, executor=executor), console=False)


def meet(_):
    import time

    time.sleep(0.3)
    return os.getpid()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [JoblibPool, ScikitLearnPool])
def test_pools_with_a_backend(kind, before):
    if kind is ScikitLearnPool:
        pytest.importorskip("sklearn")
    with kind(provider=sky.Local(), nodes=2, concurrency=2, console=False) as pool:
        assert isinstance(pool, sky.Compute)
        assert pool.total_slots == 4
        assert "none" not in nodes()
    assert default() is before


@pytest.mark.slow
def test_fork_of_a_block_does_not_hang():
    with with_joblib():
        pid = os.fork()
        if pid == 0:
            try:
                Parallel(n_jobs=-1)(delayed(abs)(i) for i in range(3))
            except sky.PoolNotActive:
                os._exit(17)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 17
        assert "none" not in nodes()
