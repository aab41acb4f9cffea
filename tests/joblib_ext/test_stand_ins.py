"""What scikit-learn puts into each fit, and differs from run to run, does not count."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.model_selection._validation import _fit_and_score
from sklearn.utils.parallel import delayed

from skyward.core.resume.identity import Hasher
from skyward.core.tasks.several_calls import NoIdentity
from skyward.joblib_ext import stand_ins

context = pytest.importorskip("sklearn.callback._callback_context", reason="scikit-learn before 1.9 has no callbacks")


pytestmark = pytest.mark.slow  # it imports scikit-learn


def origins(module: str, /, *, whole: bool = False) -> bytes:
    return f"{module} {whole}".encode()


def made(callbacks: list[Any]) -> Any:
    """The context of a fit of a search."""
    search = GridSearchCV(LogisticRegression(), {})
    if callbacks:
        search._skl_callbacks = callbacks
    settings = {"task_name": "fit", "task_id": 0, "max_subtasks": 2, "sequential_subtasks": True}
    return context.CallbackContext._from_estimator(search, **settings)


def test_contexts_are_all_the_same() -> None:
    stand_ins.install()
    first, second = made([]), made([])
    second.subcontext("a part")
    assert first.root_uuid != second.root_uuid
    assert Hasher(origins).of(first) == Hasher(origins).of(second)


def test_callbacks_must_see_each_fit() -> None:
    stand_ins.install()
    with pytest.raises(NoIdentity, match="it has callbacks of scikit-learn's"):
        Hasher(origins).of(made([object()]))


def test_a_search_does_not_count_for_its_fits() -> None:
    """One more candidate leaves the others as they were."""
    fit = delayed(_fit_and_score)
    call = fit("X", "y", caller=made([]), parameters={"C": 1}, candidate_progress=(1, 2), split_progress=(0, 5))
    assert stand_ins.what_counts(call)[2] == {"parameters": {"C": 1}}
    for other in (delayed(made)([], candidate_progress=1), fit("X", "y", parameters={})):
        assert stand_ins.what_counts(other) is other


def test_filters_of_warnings_do_not_count_unless_they_raise() -> None:
    stand_ins.install()
    wrapped, _, _ = delayed(_fit_and_score)()

    def of(filters: Any) -> bytes:
        wrapped.warning_filters = filters
        return Hasher(origins).of(wrapped)

    ignoring, raising = ("ignore", None, UserWarning, None, 0), ("error", None, UserWarning, None, 0)
    assert of([]) == of([ignoring]) == of(None) != of([ignoring, raising])
    wrapped.config = {"transform_output": "pandas"}
    assert of([]) != Hasher(origins).of(delayed(_fit_and_score)()[0])
