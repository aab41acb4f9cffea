"""A sweep ends all that carries the tag, nothing else, and does not believe the first empty look too early."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from skyward.core.errors import AuthFailed, CloudError, ProvisioningError
from skyward.core.machines.ledger import Ledger
from skyward.core.machines.sweep import sweep
from skyward.core.spec import Machine, MachineId, Order, Resources
from tests.core.folder_cloud import FolderCloud


def order(name: str, tag: str = "sky-1") -> Order:
    return Order(tag, 1, Resources(), name=name)


@pytest.fixture
def cloud(tmp_path: Path) -> FolderCloud:
    return FolderCloud(str(tmp_path))


def test_all_of_the_pool_is_ended_and_nothing_else(cloud: FolderCloud) -> None:
    cloud.create(order("a"))
    cloud.create(order("b"))
    cloud.create(order("c", "sky-2"))
    told: list[str] = []
    assert sweep(cloud, "sky-1", report=told.append) == ["m-a", "m-b"]
    assert cloud.left() == ["groups/sky-2", "machines/m-c"]
    assert told == ["folder: terminating m-a, m-b"]
    assert sweep(cloud, "sky-1") == []


def test_what_is_left_besides_machines_goes_too(cloud: FolderCloud) -> None:
    cloud.create(order("a"))
    cloud.destroy(["m-a"])
    assert cloud.left() == ["groups/sky-1"]
    assert sweep(cloud, "sky-1") == []
    assert cloud.left() == []


def test_a_refusal_for_now_is_met_with_patience(cloud: FolderCloud, tmp_path: Path) -> None:
    """As while a machine is still being made, or while the API is down."""
    cloud.create(order("a"))
    faults = [tmp_path / "sticky", tmp_path / "down"]
    for fault in faults:
        fault.touch()
    told: list[str] = []

    def tell(text: str) -> None:  # each fault ends when it has been met
        told.append(text)
        for fault in faults:
            if ("can't be ended" if fault.name == "sticky" else "is down") in text:
                fault.unlink()

    assert sweep(cloud, "sky-1", report=tell) == ["m-a"]
    assert [text for text in told if "retrying" in text] == [
        "folder: the API is down; retrying",
        "folder: it can't be ended yet; retrying",
    ]
    assert cloud.left() == []


def test_it_gives_up_and_says_what_is_left(cloud: FolderCloud, tmp_path: Path) -> None:
    cloud.create(order("a"))
    (tmp_path / "sticky").touch()
    with pytest.raises(
        ProvisioningError, match=r"can't terminate m-a of sky-1 within 0\.1 s: .*can't be ended yet"
    ) as caught:
        sweep(cloud, "sky-1", limit=0.1)
    assert not isinstance(caught.value, CloudError), "there is no use in calling it again at once"


def test_other_errors_end_it_at_once(cloud: FolderCloud, tmp_path: Path) -> None:
    (tmp_path / "locked").touch()
    with pytest.raises(AuthFailed):
        sweep(cloud, "sky-1")


def test_what_is_shown_late_is_ended_too(cloud: FolderCloud, tmp_path: Path) -> None:
    """An order that was sent right before its driver died shows up after the first look."""
    (tmp_path / "slow").write_text("0.3")
    cloud.create(order("a"))
    assert cloud.machines("sky-1") == []
    assert sweep(cloud, "sky-1", listing_delay=0.6) == ["m-a"]
    assert cloud.left() == []


def test_without_anything_it_waits_no_longer_than_it_must(cloud: FolderCloud) -> None:
    began = time.monotonic()
    sweep(cloud, "sky-1", listing_delay=0.2)
    assert 0.2 <= time.monotonic() - began < 10


class _Lingering(FolderCloud):
    """Its machines are shown for a while after they were ended, and it counts how often each is."""

    calls: list[MachineId]
    looks: int

    def destroy(self, ids: Sequence[MachineId]) -> None:
        self.calls.extend(ids)

    def machines(self, tag: str) -> Sequence[Machine]:
        object.__setattr__(self, "looks", self.looks + 1)
        if self.looks == 5:
            super().destroy(self.calls)
        return super().machines(tag)


def test_a_machine_that_lingers_is_not_terminated_at_each_poll(tmp_path: Path) -> None:
    """Clouds take a minute to end a machine, and count calls."""
    cloud = _Lingering(str(tmp_path))
    object.__setattr__(cloud, "calls", [])
    object.__setattr__(cloud, "looks", 0)
    cloud.create(order("a"))
    assert sweep(cloud, "sky-1") == ["m-a"]
    assert cloud.calls == ["m-a"]


class _Forgetful(FolderCloud):
    """Its first answer shows nothing."""

    looks: int

    def machines(self, tag: str) -> Sequence[Machine]:
        object.__setattr__(self, "looks", self.looks + 1)
        return [] if self.looks == 1 else super().machines(tag)


def test_one_poll_that_shows_nothing_is_not_believed(tmp_path: Path) -> None:
    """One server of an API may not know what the others do."""
    cloud = _Forgetful(str(tmp_path))
    object.__setattr__(cloud, "looks", 0)
    cloud.create(order("a"))
    assert sweep(cloud, "sky-1") == ["m-a"]
    assert cloud.left() == []


def test_the_ledger_is_updated_at_once(cloud: FolderCloud, tmp_path: Path) -> None:
    """Also if it does not come to its end."""
    ledger = Ledger(tmp_path / "state")
    ledger.made(cloud.name, cloud.create(order("a")))

    def clear(tag: str) -> None:
        raise AuthFailed("may not")

    object.__setattr__(cloud, "clear", clear)
    with pytest.raises(AuthFailed):
        sweep(cloud, "sky-1", ledger)
    assert [entry.ended is None for entry in ledger.machines()] == [False]


def test_two_at_a_time_do_no_harm(cloud: FolderCloud) -> None:
    for name in "abcdef":
        cloud.create(order(name))
    other = threading.Thread(target=sweep, args=(cloud, "sky-1"))
    other.start()
    sweep(cloud, "sky-1")
    other.join()
    assert cloud.left() == []
