"""Whether and when a fork server that died is replaced."""

from __future__ import annotations

from skyward.worker.forkserver.restarts import Ended, RestartPolicy

CRASH = Ended("ended with status -11", killed=True)
EXIT = Ended("ended with status 1", killed=False)


def test_restarts_in_a_row_come_later_and_later_and_then_not_at_all() -> None:
    policy = RestartPolicy()
    delays = [policy.ended(CRASH, 1.0, proven=False) for _ in range(6)]
    assert delays == [0.0, 0.1, 0.5, 2.0, 5.0, None]


def test_a_server_that_was_up_for_long_starts_the_row_again() -> None:
    policy = RestartPolicy()
    assert [policy.ended(CRASH, 1.0, proven=True) for _ in range(3)][-1] == 0.5
    policy.up(2.0)
    assert policy.ended(CRASH, 11.0, proven=True) == 2.0, "nine seconds are not long"
    policy.up(12.0)
    assert policy.ended(CRASH, 23.0, proven=True) == 0.0


def test_time_in_which_it_hung_does_not_count_as_up() -> None:
    policy = RestartPolicy()
    assert policy.ended(CRASH, 1.0, proven=True) == 0.0
    policy.up(2.0)
    assert policy.ended(Ended("hung", killed=True, hung=60.0), 65.0, proven=True) == 0.1


def test_one_that_exits_by_itself_is_replaced_only_where_slots_have_been_up() -> None:
    policy = RestartPolicy()
    assert policy.ended(EXIT, 1.0, proven=False) is None
    assert policy.ended(EXIT, 1.0, proven=True) == 0.0


def test_one_that_hangs_before_it_is_up_is_not_replaced() -> None:
    policy = RestartPolicy()
    hung = Ended("was not ready", killed=True, hung=600.0)
    assert policy.ended(hung, 601.0, proven=True) is None
    policy.up(602.0)
    assert policy.is_up
    assert policy.ended(hung, 1300.0, proven=True) == 0.0
    assert not policy.is_up
