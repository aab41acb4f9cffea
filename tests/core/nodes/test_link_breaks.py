"""A node is given up for breaks that lead nowhere, and never for those that a bad line makes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skyward.core.nodes.link_breaks import Breaks, LinkProgress


def test_two_errors_without_progress_are_enough() -> None:
    breaks = Breaks()
    assert breaks.count(LinkProgress(1, 1, 2), 0.1, "first", fault=True) is None
    assert breaks.count(LinkProgress(1, 1, 2), 100.0, "the connection ended", fault=False) is None
    why = breaks.count(LinkProgress(1, 2, 3), 0.1, "second", fault=True)
    assert why is not None
    assert why.endswith("without progress in between: second")


def test_what_one_end_can_not_take_is_noticed_though_the_other_direction_goes_on() -> None:
    """The node's results come, while one message to it breaks each link; and the other way round."""
    breaks = Breaks()
    assert breaks.count(LinkProgress(5, 1, 9), 1.0, "x", fault=True) is None
    assert breaks.count(LinkProgress(9, 1, 12), 1.0, "x", fault=True)
    breaks = Breaks()
    assert breaks.count(LinkProgress(5, 1, 9), 1.0, "x", fault=True) is None
    assert breaks.count(LinkProgress(5, 9, 12), 1.0, "x", fault=True)


def test_progress_forgives_errors() -> None:
    breaks = Breaks()
    for step in range(20):
        assert breaks.count(LinkProgress(step + 1, step + 1, step + 1), 10.0, "x", fault=True) is None


def test_errors_at_once_are_too_many_sometime_though_something_is_said_in_between() -> None:
    """A node that breaks each link must not keep us busy with that for ever."""
    breaks = Breaks()
    counts = [breaks.count(LinkProgress(step, step, step), 0.1, "x", fault=True) for step in range(1, 11)]
    assert counts[:-1] == [None] * 9
    assert counts[-1] == "its link broke 10 times in a row after an error, soon after it was made: x"


def test_links_that_break_at_once_are_tried_a_few_times_and_ever_more_slowly() -> None:
    breaks = Breaks()
    pauses = []
    while (why := breaks.count(LinkProgress(1, 1, 2), 0.01, "the connection ended", fault=False)) is None:
        pauses.append(breaks.pause)
    assert pauses == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert "5 times in a row" in why


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(0, 100)), max_size=40))
def test_a_line_that_breaks_loses_no_node_while_anything_passes_or_links_last(
    links: list[tuple[int, int, float]],
) -> None:
    breaks, heard, told = Breaks(), 0, 0
    idle = 0
    for more_heard, more_told, seconds in links:
        heard, told = heard + more_heard, told + more_told
        useless = not more_heard and not more_told and seconds <= 5
        idle = idle + 1 if useless else 0
        assert (breaks.count(LinkProgress(heard, told, told + 1), seconds, "x", fault=False) is None) == (idle < 5)
        if idle >= 5:
            return
