"""What a process may still open is counted before it is needed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from skyward.core.system import open_files

ROOT = Path(__file__).parents[3]


def few(code: str, soft: int, hard: int | None = None) -> str:
    """What a program prints that may have few open files."""
    limits = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard or soft}))\n"
    done = subprocess.run(
        [sys.executable, "-c", limits + dedent(code)], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    return done.stdout + done.stderr


def test_what_is_left_is_what_can_be_opened() -> None:
    code = """
        import os
        from skyward.core.system import open_files
        said, opened = open_files.left(), 0
        try:
            while True:
                os.open("/dev/null", os.O_RDONLY)
                opened += 1
        except OSError:
            print(open_files.limit(), said == opened, open_files.left())
    """
    assert few(code, 40) == "40 True 0\n"


def test_the_limit_is_raised_as_far_as_allowed_and_never_lowered() -> None:
    code = "from skyward.core.system.open_files import allow; print(allow(50), allow(200), allow(10))"
    assert few(code, 40, 100) == "50 100 100\n"


@pytest.mark.parametrize(("hard", "words"), [(4096, "(ulimit -n 1024)"), (64, "the system allows 64")])
def test_the_advice_can_be_followed(hard: int, words: str) -> None:
    assert words in few("from skyward.core.system.open_files import advice; print(advice(30))", 64, hard)


def test_a_system_that_does_not_show_open_files_is_no_reason_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> list[str]:
        raise FileNotFoundError(errno.ENOENT, "no such folder", path)

    monkeypatch.setattr(os, "listdir", missing)  # a chroot without /dev/fd
    assert open_files.left() == open_files.limit()


def test_nothing_stays_open() -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    assert open_files.left() == open_files.left()
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_more_nodes_than_fit_are_refused_before_anything_is_started() -> None:
    code = """
        import skyward as sky
        try:
            sky.Compute(nodes=20, console=False).start()
        except sky.ConfigError as error:
            print(error)
    """
    said = few(code, 64)
    assert "nodes=20 needs 96 open files" in said
    assert "use at most 10 nodes" in said or "use at most 11 nodes" in said


@pytest.mark.slow
def test_more_slots_than_fit_are_refused_by_the_node() -> None:
    code = """
        import skyward as sky
        try:
            sky.Compute(concurrency=20, console=False).start()
        except sky.ProvisioningError as error:
            print(error)
    """
    said = few(code, 64)
    assert "20 slots need 124 open files" in said
    assert "Worker(concurrency=8)" in said


@pytest.mark.slow
def test_more_hosts_than_fit_are_refused_too() -> None:
    code = """
        import skyward as sky
        hosts = [f"192.0.2.{i}" for i in range(1, 41)]
        try:
            sky.Compute(provider=sky.SSH(hosts=hosts), nodes=40, console=False).start()
        except sky.ConfigError as error:
            print(error)
    """
    assert "nodes=40 needs 72 open files" in few(code, 64)


@pytest.mark.slow
def test_a_host_is_not_blamed_for_our_want_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ann")
    code = """
        import asyncio, os
        from skyward.core.spec import Endpoint
        from skyward.transport.ssh import SSHTransport

        async def main():
            place = Endpoint("ssh", "127.0.0.1", 1, "root", {"config": [], "known_hosts": [], "keys": []})
            for none_left in (False, True):  # at first to load all modules
                while none_left:
                    try:
                        os.open("/dev/null", os.O_RDONLY)
                    except OSError:
                        break
                try:
                    await SSHTransport().connect(place, 5)
                except Exception as error:
                    print(error)
        asyncio.run(main())
    """
    said = few(code, 64).splitlines()
    assert "connection refused" in said[0]
    assert "this process can open no more files" in said[1]
    assert "Is the host up" not in said[1]


@pytest.mark.slow
def test_a_pool_does_with_few_open_files() -> None:
    """Large arguments and results, more than there may be open files; login nodes allow 64, and so they will here."""
    code = """
        import numpy as np
        import skyward as sky
        from joblib import Parallel, delayed

        arrays = [np.full(200_000, i) for i in range(70)]
        with sky.Compute(nodes=2, concurrency=3, plugins=[sky.plugins.joblib()], console=False) as pool:
            print(sum(Parallel(n_jobs=-1)(delayed(abs)(i) for i in range(50))))
            print(sum(int(r[0]) for r in Parallel(n_jobs=-1)(delayed(np.full)(200_000, i) for i in range(70))))
            print(sum(int(r) for r in Parallel(n_jobs=-1)(delayed(np.max)(a) for a in arrays)))
            print({pool.submit(lambda a: sum(int(x[0]) for x in a), arrays).result() for _ in range(3)})
    """
    assert few(code, 64) == "1225\n2415\n2415\n{2415}\n"
