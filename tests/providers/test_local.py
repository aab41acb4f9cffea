"""Agents that start before they are ordered. What else `Local` does is tested by the suites and by pools' tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import skyward as sky
from skyward.core.spec import Order, Resources
from skyward.providers.local import Local
from skyward.providers.local_agents import Process


@pytest.fixture
def local() -> Iterator[Local]:
    provider = Local()
    yield provider
    provider.discard("tag")
    provider.destroy([machine.id for machine in provider.machines("tag")])


def prepared(provider: Local) -> list[Process]:
    return [process for started in provider._prepared.values() for process in started.processes]


def order(count: int) -> Order:
    return Order("tag", count, Resources())


def test_what_is_prepared_is_what_is_created(local: Local) -> None:
    local.prepare(order(2))
    waiting = prepared(local)
    local.create(order(2))
    assert prepared(local) == []
    assert [process for _, process in local._agents.values()] == waiting
    local.discard("tag")
    assert len(local.machines("tag")) == 2, "they are ordered by now"


def test_another_number_starts_anew(local: Local) -> None:
    local.prepare(order(1))
    (waiting,) = prepared(local)
    assert len(local.create(order(2))) == 2
    assert waiting._child.returncode is not None


def test_agents_have_the_variables_of_when_they_are_created(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    local.prepare(order(1))
    (waiting,) = prepared(local)
    monkeypatch.setenv("SET_BY_A_PLUGIN", "1")
    local.create(order(1))
    assert waiting._child.returncode is not None
    ((_, agent),) = local._agents.values()
    assert b"SET_BY_A_PLUGIN=1" in Path(f"/proc/{agent.pid}/environ").read_bytes().split(b"\0")


def test_what_keeps_agents_from_starting_is_raised_when_they_are_created(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    local.prepare(order(1))
    with pytest.raises(sky.ProvisioningError, match="can't start an agent on this machine"):
        local.create(order(1))


def test_what_is_discarded_is_ended(local: Local) -> None:
    local.prepare(order(2))
    waiting = prepared(local)
    local.discard("tag")
    local.discard("tag")
    assert waiting[0]._child.returncode is not None
    assert all(process.lifeline.closed for process in waiting)
    assert prepared(local) == []


def test_a_pool_that_can_not_be_made_leaves_none(tmp_path: Path) -> None:
    provider = Local()
    (tmp_path / "runs").write_text("not a database", encoding="utf-8")
    with pytest.raises(sky.ResumeFileError), sky.Compute(provider, resume=tmp_path / "runs"):
        pass
    assert prepared(provider) == []
