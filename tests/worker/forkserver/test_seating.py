"""Who has which number, and who waits for GPUs."""

from __future__ import annotations

from skyward.worker.forkserver.seating import Seating


def test_without_gpus_a_number_is_free_when_its_slot_is_killed() -> None:
    seating: Seating[str] = Seating(0)
    assert [seating.take(slot) for slot in (7, 8, 9)] == [1, 2, 3]
    seating.killed(8)
    assert seating.take(10) == 2
    assert seating.has_place
    seating.release(8)  # it has ended; its number is another's
    assert seating.seated == {7: 1, 9: 3, 10: 2}


def test_with_gpus_a_number_is_free_when_its_slot_has_ended() -> None:
    seating: Seating[str] = Seating(1)
    seating.take(1)
    seating.killed(1)
    assert not seating.has_place
    seating.wait(2, "second", 10.0)
    seating.wait(3, "third", 20.0)
    assert seating.next == 70.0
    assert list(seating.due(69.0)) == []
    seating.release(1)
    for slot, request, has_place in seating.due(69.0):
        assert (slot, request, has_place) == (2, "second", True)
        seating.take(slot)
    assert list(seating.due(79.0)) == []
    assert list(seating.due(80.0)) == [(3, "third", False)]
    assert seating.next is None


def test_a_slot_that_is_withdrawn_waits_no_more() -> None:
    seating: Seating[str] = Seating(1)
    seating.take(1)
    seating.wait(2, "second", 0.0)
    assert seating.withdraw(2) == "second"
    assert seating.withdraw(2) is None
    assert seating.next is None
