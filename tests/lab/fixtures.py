"""Fixtures that lend the lab's machines to tests; a test's conftest names this module.

A machine without the means for a lab skips these tests and says why; on CI (CI=true) that is a
failure, so that they cannot fall silent unnoticed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Protocol, Unpack

import pytest

from . import Host, Lab, Options, missing

__all__ = ["FreshHost", "LabHosts", "cloud_init", "fresh_host", "lab", "lab_hosts"]


class LabHosts(Protocol):
    """What `lab_hosts` gives: the first n of the session's shared default hosts."""

    def __call__(self, n: int = 1) -> list[Host]: ...


class FreshHost(Protocol):
    """What `fresh_host` gives: a host of the test's own, with options."""

    def __call__(self, **options: Unpack[Options]) -> Host: ...


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The session's lab."""
    reason = missing()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run the tests on real machines, but {reason}")
        pytest.skip(reason)
    with Lab() as running:
        yield running


@pytest.fixture(scope="session")
def cloud_init() -> None:
    """This machine has Debian's cloud-init to lend to hosts."""
    if shutil.which("cloud-init") is None:
        reason = "user data are run by Debian's cloud-init, which scripts/lab-packages installs"
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run the tests on real machines, but {reason}")
        pytest.skip(reason)


@pytest.fixture(scope="session")
def lab_hosts(lab: Lab) -> LabHosts:
    """Hosts that all tests share, started on demand; one that a test switched off is replaced."""
    shared: list[Host] = []

    def first(n: int = 1) -> list[Host]:
        for host in [host for host in shared if not host.alive]:
            shared.remove(host)
            lab.remove(host)
        for host in shared:
            host.mend()
        if len(shared) < n:
            shared.extend(lab.up(n - len(shared)))
        return shared[:n]

    return first


@pytest.fixture
def fresh_host(lab: Lab) -> Iterator[FreshHost]:
    """Starts hosts for this test alone, which are removed after it."""
    started: list[Host] = []

    def start(**options: Unpack[Options]) -> Host:
        started.extend(lab.up(1, **options))
        return started[-1]

    yield start
    for host in started:
        lab.remove(host)
