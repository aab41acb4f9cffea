"""How long a node may be without a link."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skyward.core.nodes.timing import Timing, link_patience


@given(st.lists(st.floats(0, 1000), max_size=5), st.floats(30, 1000))
def test_how_long_a_node_is_waited_for(others: list[float], orphans: float) -> None:
    """Briefly while others are there all the time, long while the line from here may be down, as agents do."""
    timing = Timing()
    limit = link_patience(timing, orphans, others)
    if not others:
        assert limit == timing.give_up
    elif max(others) >= timing.give_up_alone:
        assert limit == timing.give_up_alone
    else:
        assert timing.give_up <= limit <= max(timing.give_up, orphans)
        assert limit <= timing.give_up_all
