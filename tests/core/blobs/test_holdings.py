"""Each blob is sent to a node once, and never forgotten while a task needs it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skyward.core.blobs.holdings import NodeHoldings

NAMES = [b"a", b"b", b"c", b"d"]
SIZES = {b"a": 10, b"b": 20, b"c": 30, b"d": 40}


@given(
    steps=st.lists(st.tuples(st.booleans(), st.sets(st.sampled_from(NAMES), min_size=1)), max_size=60),
    budget=st.integers(0, 120),
)
def test_any_order_of_use_and_release(steps: list[tuple[bool, set[bytes]]], budget: int) -> None:
    """Against a perfect node: what a task needs is there, what is not needed stays within the budget."""
    blobs, node, tasks = NodeHoldings(budget), set[bytes](), list[set[bytes]]()
    for begins, names in steps:
        if begins:
            missing, forgotten = blobs.use({name: SIZES[name] for name in names})
            assert not set(missing) & node
            node -= set(forgotten)
            node |= set(missing)
            tasks.append(names)
            assert not set(forgotten) & set.union(*tasks)
            if missing:
                idle = node - set.union(*tasks)
                assert not idle or sum(SIZES[name] for name in node) <= budget
        elif tasks:
            blobs.release(tasks.pop(0))
        assert all(task <= node for task in tasks)
