"""The clocks of this machine."""

from __future__ import annotations

import time

from skyward.core.machines.clocks import Clocks


def test_the_time_of_day_and_no_sleep_while_a_test_runs() -> None:
    clocks = Clocks()
    assert abs(clocks.wall() - time.time()) < 60
    before = clocks.asleep()
    assert before > -1
    assert abs(clocks.asleep() - before) < 60
