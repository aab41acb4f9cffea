"""What one source needs next. The promises of all of them together are in test_fleet.py."""

from __future__ import annotations

import math

from skyward.core.errors import AuthFailed, CloudError
from skyward.core.machines.fleet_events import Clear, Destroy, NotSeen, Poll, Report, Seen, Source
from skyward.core.machines.fleet_state import OwnedMachine, Phase, SourceState

RENTED = Source("cloud", rented=True, patience=100.0, listing_delay=10.0, poll=1.0)


def state(source: Source = RENTED, **machines: Phase) -> SourceState:
    it = SourceState(0, source)
    it.machines = {name: OwnedMachine(phase, 0.0, None) for name, phase in machines.items()}
    return it


def test_failures_are_retried_later_and_later_but_not_too_late() -> None:
    it = state()
    assert [it.backoff() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_a_source_is_polled_once_at_a_time_and_only_for_a_reason() -> None:
    it = state()
    assert list(it.poll(0.0, math.inf)) == [], "nothing was ordered there"
    it.machines["m"] = OwnedMachine(Phase.BOOTING, 0.0, None)
    assert list(it.poll(0.0, math.inf)) == [Poll(0)]
    assert list(it.poll(1.0, math.inf)) == [], "the answer is not there yet"


def test_a_machine_is_terminated_once_until_the_answer_comes() -> None:
    it = state(a=Phase.ENDING, b=Phase.BEGUN)
    assert list(it.destroy(1.0)) == [Destroy(0, ["a"])]
    assert list(it.destroy(1.0)) == []
    it.destroyed(["a"], 2.0)
    assert "a" in it.machines, "until a poll confirms it"
    assert list(it.destroy(99.0)) == []


def test_a_host_is_gone_when_its_source_says_so() -> None:
    it = state(Source("hosts"), a=Phase.ENDING)
    it.destroyed(["a"], 1.0)
    assert it.machines == {}
    assert it.done


def test_a_termination_that_fails_is_retried_and_reported_once() -> None:
    it = state(a=Phase.ENDING)
    reports: list[object] = []
    for _ in range(5):
        reports += it.not_destroyed(["a"], CloudError("down"), 0.0)
    assert reports == [Report("cloud: a can't be terminated: down; retrying", warning=True)]
    assert it.machines["a"].due == 16.0


def test_what_carries_the_tag_is_removed_when_a_poll_after_the_end_shows_nothing() -> None:
    it = state()
    it.used = True
    assert list(it.clear(5.0, 5.0)) == []
    it.bare = 6.0
    assert list(it.clear(7.0, 5.0)) == [Clear(0)]
    assert list(it.clear(7.0, 5.0)) == [], "it is being done"
    it.not_cleared(8.0)
    assert not it.done
    assert list(it.clear(9.0, 5.0)) == [Clear(0)]
    it.is_cleared()
    assert it.done


def test_a_source_that_refuses_the_credentials_for_a_while_is_given_up() -> None:
    it, error = state(a=Phase.ENDING), AuthFailed("expired")
    it.judge(NotSeen(0, error), 0.0)
    it.judge(NotSeen(1, error), 9.0)  # another source's
    assert it.given_up is None
    it.judge(Seen(0, []), 1.0)
    it.judge(NotSeen(0, error), 2.0)
    it.judge(NotSeen(0, error), 4.4)
    assert it.given_up is None
    it.judge(NotSeen(0, error), 4.5)
    assert it.given_up is error
    assert not it.done, "terminating may be allowed all the same"
    assert list(it.destroy(5.0)) == [Destroy(0, ["a"])]
    list(it.not_destroyed(["a"], error, 5.0))
    assert it.done
