"""A pool on real hosts and rented machines says how it is: loads, prices, costs, and what was lost."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from joblib import Parallel, delayed

import skyward as sky
from skyward.core.events import Event, MachineEnded, MachineMade, NodeGone, Note, TaskEnded
from skyward.core.facts import Facts
from tests.lab import Lab, eventually
from tests.lab.clouds.cloud import Machines
from tests.lab.clouds.verda import Verda
from tests.lab.fixtures import LabHosts
from tests.remote import Reach, index, reach, wheels

__all__ = ["index", "reach", "wheels"]  # fixtures

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def nap(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


nap.__module__ = "__main__"  # by value: hosts don't have this module


@pytest.fixture
def verda(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Verda]:
    with Verda(Machines(lab)) as running:
        monkeypatch.setenv("VERDA_BASE_URL", running.base_url)
        monkeypatch.setenv("VERDA_CLIENT_ID", running.client_id)
        monkeypatch.setenv("VERDA_CLIENT_SECRET", running.client_secret)
        yield running


def test_hosts_say_how_they_are_used_and_a_lost_one_is_shown(lab_hosts: LabHosts, reach: Reach) -> None:
    hosts = lab_hosts(2)
    pool = sky.Compute(**reach(hosts), concurrency=2)
    ended: list[TaskEnded] = []
    pool.events.subscribe(ended.append, [TaskEnded])
    with pool:
        futures = [pool.submit(nap, 0.3) for _ in range(24)]
        eventually(lambda: all(node.load for node in pool.status().nodes), 60, "each node's load")
        status = pool.status()
        assert [(node.provider, node.state, node.slots, node.price) for node in status.nodes] == [
            ("ssh", "ready", 2, 0.0)
        ] * 2
        for node in status.nodes:
            assert node.load is not None
            assert node.load.memory_total
            assert node.load.disk_free
        assert (status.cost, status.tasks.total) == (0, 24)
        assert [future.result(60) for future in futures] == [0.3] * 24
        assert {(event.node, event.slot) for event in ended} == {
            (node, slot) for node in ("node-1", "node-2") for slot in (0, 1)
        }
        gone: list[Event] = []
        pool.events.subscribe(gone.append, [NodeGone])
        (agent,) = hosts[0].named("skyward-agent")
        hosts[0].run("kill", "-9", str(agent), check=True)
        eventually(lambda: bool(gone), 60, "the end of a node")
        (lost,) = (node for node in pool.status().nodes if node.state == "lost")
        assert lost.detail
        assert lost.done > 0
        assert pool.status().lost == 1


def test_what_machines_cost_is_known_while_they_run_and_agrees_with_the_ledger(verda: Verda, index: str) -> None:
    found = sky.explain(lambda: Parallel(n_jobs=-1)(delayed(nap)(0.1) for _ in range(4)), "verda", nodes=2)
    pool = sky.Compute(provider="verda", nodes=2, image=sky.Image(index=index), console=False)
    facts, heard = Facts(), list[Event]()
    pool.events.subscribe(facts.handle, facts.kinds)
    pool.events.subscribe(heard.append, [MachineMade, MachineEnded, Note])
    with pool:
        pool.submit(nap, 0.1).result(60)
        status = pool.status()
        assert status.cost > 0
        assert status.price == pytest.approx(sum(node.price or 0.0 for node in status.nodes))
        assert all(node.type and node.price and node.provider == "verda" for node in status.nodes)
        assert "verda" in str(status)
    made = [event.id for event in heard if isinstance(event, MachineMade)]
    assert len(made) == 2
    assert sorted(made) == sorted({event.id for event in heard if isinstance(event, MachineEnded)})
    note = heard[-1]
    assert isinstance(note, Note)
    assert (match := re.search(r"^0 machines left of 2, \$([\d.]+) spent \(\$([\d.]+) estimated\)$", note.text))
    assert float(match[2]) in [round(option.forecast.price or 0.0, 4) for option in found.options]
    # The events are heard a moment after the ledger was written.
    assert facts.status().cost == pytest.approx(float(match[1]), rel=0.05, abs=0.0002)
    assert facts.status().price == 0
