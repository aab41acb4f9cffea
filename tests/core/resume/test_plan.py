"""What is known and what is computed become one list, in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.resume.plan import CallPlan


@given(st.lists(st.booleans()))
def test_each_result_is_in_its_place(there: list[bool]) -> None:
    keys = [b"%d" % number for number in range(len(there))]
    plan = CallPlan(keys, {number: f"known {number}" for number, known in enumerate(there) if known}, 1.5)
    assert plan.missing == [number for number, known in enumerate(there) if not known]
    merged = plan.merge([f"computed {number}" for number in plan.missing])
    assert merged == [f"{'known' if known else 'computed'} {number}" for number, known in enumerate(there)]
    assert plan.seconds == 1.5


@pytest.mark.parametrize("computed", [[], [1, 2]])
def test_another_number_of_results_is_an_error(computed: list[int]) -> None:
    with pytest.raises(ValueError, match="zip"):
        CallPlan([b"a", b"b"], {0: 1}).merge(computed)
