"""What a call would take is found out without making it: nothing is bought, and nothing here changes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from joblib import Parallel, delayed

import skyward as sky
from skyward.core.interfaces import Trait
from skyward.core.machines.estimates import Rented, estimated
from skyward.core.spec import Machine, MachineId, Offer, Order, Resources
from tests.lazily import Lazy

pytestmark = pytest.mark.slow  # processes measure tasks

sk = Lazy("tests.estimators")


class Window:
    """A cloud that can be looked at only."""

    name: ClassVar[str] = "window"
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.RENTED, Trait.SPOT})
    usual_start: ClassVar[float] = 40.0

    def __init__(self, *offers: Offer) -> None:
        self.on_show = offers

    def offers(self, resources: Resources) -> Sequence[Offer]:
        return self.on_show

    def create(self, order: Order) -> Sequence[Machine]:
        raise AssertionError("something was bought")

    def machines(self, tag: str) -> Sequence[Machine]:
        raise AssertionError("asked for machines")

    def destroy(self, ids: Sequence[MachineId]) -> None:
        raise AssertionError("asked for machines")


SMALL = Offer("small", vcpus=2, memory=4 * 2**30, price=0.1)
LARGE = Offer("large", vcpus=16, memory=32 * 2**30, price=0.4)


def test_what_is_said_of_a_long_call() -> None:
    """4,000 tasks of 0.25 s: 500 s on this machine's cores, if it has two."""
    tasks = 2000 * len(os.sched_getaffinity(0))
    found = sky.explain(
        lambda: Parallel(n_jobs=-1)(delayed(time.sleep)(0.25) for _ in range(tasks)),
        Window(SMALL, LARGE),
        nodes=20,
        concurrency=16,
        vcpus=2,
        seconds=0.1,
    )
    assert found.workload.calls == tasks
    assert [option.machine for option in found.options] == ["small", "large"]
    small, large = found.options
    assert small.forecast.start == 40.0
    assert small.forecast.call == pytest.approx(tasks / 320 * 0.25, rel=0.3)
    assert large.forecast.price == pytest.approx(4 * small.forecast.price)  # type: ignore[operator]
    assert found.here.forecast.wall == pytest.approx(500, rel=0.2)
    assert estimated([Rented("window", "large", False)], 20) == large.forecast.price
    assert "<td>window, 20 x large with 16 slots</td>" in found._repr_html_()
    assert found.worthwhile
    assert found.advice.startswith("worth it: window, 20 x ")
    text = repr(found)
    assert f"{tasks:,} calls; " in text
    assert "starting the nodes: 40.0 s" in text


def test_a_short_call_is_not_worth_it() -> None:
    found = sky.explain(
        lambda: Parallel(n_jobs=-1)(delayed(time.sleep)(0.01) for _ in range(50)), [Window(SMALL), Window()]
    )
    assert not found.worthwhile
    assert " here: not worth it; the fastest of these, window, 1 x small with 1 slots, takes 40." in found.advice
    assert len(found.problems) == 1
    assert found.problems[0].startswith("window: ")


def test_nothing_here_changes() -> None:
    data, target = np.random.default_rng(0).random((60, 4)), np.arange(60) % 2
    forest = sk.RandomForestClassifier(5, random_state=0).fit(data, target)
    search = sk.GridSearchCV(sk.SVC(), {"C": [1, 10]}, n_jobs=-1, cv=3)
    before, states = dict(vars(search)), [tree.tree_ for tree in forest.estimators_]
    found = sky.explain(lambda: search.fit(data, target))
    assert found.workload.calls == 6
    assert vars(search) == before
    again = sk.RandomForestClassifier.set_params(forest, n_jobs=-1, n_estimators=30)
    assert sky.explain(lambda: again.fit(data, target), concurrency=2).workload.calls == 30
    assert [tree.tree_ for tree in forest.estimators_] == states


def test_a_call_that_can_not_be_sent() -> None:
    lock = threading.Lock()
    with pytest.raises(sky.PayloadError, match="lock"):
        sky.explain(lambda: Parallel(n_jobs=-1)(delayed(id)(lock) for _ in range(3)))


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (3, {}, "explain takes a function without arguments"),
        (abs, {"seconds": -1}, "seconds"),
        (abs, {"bandwidth": 0}, "bandwidth=0"),
        (abs, {"nodes": 0}, "nodes"),
        (abs, {"provider": []}, "names no provider"),
    ],
    ids=["call", "seconds", "bandwidth", "nodes", "provider"],
)
def test_wrong_arguments(call: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(sky.ConfigError, match=message):
        sky.explain(call, **options)
