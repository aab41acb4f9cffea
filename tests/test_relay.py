"""From node to node, on real hosts: what leaves the driver, and what happens when a peer can't deliver."""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import skyward as sky
from skyward.core.tasks.futures import TaskFuture
from skyward.core.tasks.jobs import TaskOptions
from tests.lab import Host, Lab, eventually
from tests.lab.fixtures import FreshHost, LabHosts
from tests.remote import Reach, index, reach, wheels

__all__ = ["index", "reach", "wheels"]  # fixtures

pytestmark = pytest.mark.lab

MB = 2**20


def crc(data: Any) -> int:
    return zlib.crc32(data)


crc.__module__ = "__main__"  # hosts don't have this module


def relay_of(pool: sky.Compute) -> Any:
    """The plan, which the I/O thread changes: only for looking at."""
    return pool.dispatcher.runner._distributor._relay


def acquainted(pool: sky.Compute) -> bool:
    names = set(pool.node_names)
    return all(relay_of(pool)._reach.get(name) == names - {name} for name in names)


def sent_by_driver(lab: Lab) -> int:
    """Bytes that this machine itself has put on the bridge; what hosts send each other does not count."""
    return int(Path(f"/sys/class/net/{lab.net.bridge}/statistics/tx_bytes").read_text())


def to_all(pool: sky.Compute, data: bytes) -> list[TaskFuture[int]]:
    """One task on each node, with the same large buffer."""
    return [
        pool.dispatcher.submit(crc, pickle.PickleBuffer(data), options=TaskOptions(node=name))
        for name in pool.node_names
    ]


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is, no node is given up as a source for being slow, and nothing is sent twice."""
    monkeypatch.setattr("skyward.core.blobs.relay.GRACE", 60.0)


@pytest.mark.usefixtures("patience")
def test_a_large_argument_leaves_the_driver_once(lab: Lab, lab_hosts: LabHosts, reach: Reach) -> None:
    """Four nodes get 8 MB each, and the driver sends 8 MB; the second time nothing moves."""
    data = os.urandom(8 * MB)
    with sky.Compute(**reach(lab_hosts(4))) as pool:
        eventually(lambda: acquainted(pool), 20, "every node reaches every other one")
        assert [future.result(60) for future in to_all(pool, b"")] == [0] * 4  # the code of these tests is there
        before = sent_by_driver(lab)
        assert [future.result(60) for future in to_all(pool, data)] == [zlib.crc32(data)] * 4
        once = sent_by_driver(lab) - before
        assert [future.result(60) for future in to_all(pool, data)] == [zlib.crc32(data)] * 4
        twice = sent_by_driver(lab) - before
    assert 8 * MB < once < 8.5 * MB
    assert twice - once < 0.5 * MB


@contextmanager
def firewall(hosts: list[Host]) -> Iterator[None]:
    """What these hosts send each other is lost, as if it had never been."""
    pairs = [(host, other.address) for host in hosts for other in hosts if other is not host]
    nobody = ["lladdr", "02:00:00:00:00:01", "nud", "permanent"]
    for host, address in pairs:
        host.run("ip", "neigh", "replace", address, "dev", "eth0", *nobody, check=True)
    try:
        yield
    finally:
        for host, address in pairs:
            host.run("ip", "neigh", "del", address, "dev", "eth0", check=True)


def test_a_firewall_between_the_nodes_costs_nothing_but_the_relay(lab: Lab, lab_hosts: LabHosts, reach: Reach) -> None:
    """Nodes that don't reach each other get everything from the driver, and no task waits to find that out."""
    hosts, data = lab_hosts(2), os.urandom(4 * MB)
    with firewall(hosts), sky.Compute(**reach(hosts)) as pool:
        before = sent_by_driver(lab)
        assert [future.result(60) for future in to_all(pool, data)] == [zlib.crc32(data)] * 2
        assert sent_by_driver(lab) - before > 8 * MB
        assert not any(relay_of(pool)._reach.values())


def test_a_firewall_that_comes_up_later_is_survived(lab_hosts: LabHosts, reach: Reach) -> None:
    """A pair that was known to work and does not any more: the driver sends it after a moment, and remembers."""
    hosts, data = lab_hosts(2), os.urandom(4 * MB)
    with sky.Compute(**reach(hosts)) as pool:
        eventually(lambda: acquainted(pool), 20, "every node reaches every other one")
        with firewall(hosts):
            assert [future.result(60) for future in to_all(pool, data)] == [zlib.crc32(data)] * 2
        assert sum(map(len, relay_of(pool)._reach.values())) == 1
        assert not relay_of(pool).busy


def test_a_peer_that_dies_in_mid_transfer_is_made_up_for(
    lab: Lab, lab_hosts: LabHosts, fresh_host: FreshHost, reach: Reach
) -> None:
    """The node that serves the others is pulled out: they get the rest from the driver, and every task is answered."""
    doomed, *others = fresh_host(delay=0.005, rate=4 * MB), *lab_hosts(2)
    data = os.urandom(16 * MB)
    with sky.Compute(**reach([doomed, *others])) as pool:
        eventually(lambda: acquainted(pool), 20, "every node reaches every other one")
        first = pool.node_names[0]
        futures = to_all(pool, data)
        eventually(lambda: relay_of(pool)._serving.get(first), 20, "it serves")
        received = others[0].rx_bytes
        eventually(lambda: others[0].rx_bytes > received + 2 * MB, 20, "some of it has come")
        doomed.kill()
        assert others[0].rx_bytes < received + 16 * MB, "not all of it had"
        for future in futures[1:]:
            assert future.result(20) == zlib.crc32(data)
        futures[0].cancel()  # else the end waits until its node counts as lost
