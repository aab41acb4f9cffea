"""The whole product under simulation: new seeds, scenarios that once failed, and faults of the past to be found."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.simulation import worlds
from tests.simulation.planted import FAULTS
from tests.simulation.run import Outcome, quiet, simulate
from tests.simulation.scenario import Misfortune, Scenario, Wish
from tests.simulation.shrink import kind_of, reduced_story, shrunk

SECONDS = 10.0  # of a processor
SEEDS = 250  # at most; CI runs more by `make simulate`
MAX_SEEDS = 10_000
RARE = {"a_clock_that_is_read_twice"}  # once in two thousand seeds, which takes half a minute
LATE = {
    "a_group_that_is_forgotten": 2930,
    "gpus_of_a_slot_that_lives": 440,
    "known_results_come_first": 425,
    "messages_taken_twice": 145,
    "modules_that_only_the_next_task_has": 875,
    "money_that_is_spent_twice": 455,
    "slots_that_keep_old_code": 685,
    "tasks_taken_back_and_forgotten": 185,
    "tasks_that_nobody_recalls": 1520,
    "tickets_in_the_order_of_arrival": 140,
}
"""Where the search for a fault begins: it is found soon after. From 0 on takes minutes, as after a change of the
worlds, which moves them."""
KEPT = sorted((Path(__file__).parent / "kept").glob("*.json"))


def check(outcome: Outcome) -> None:
    if outcome.broken:
        print(f"seed {outcome.scenario.seed}: {outcome.broken[0]}")  # in case that the rest takes too long
        pytest.fail(reduced_story(outcome, 300), pytrace=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_new_seeds() -> None:
    first, began = random.SystemRandom().randrange(10**9), time.process_time()
    with quiet() as after:
        for seed in range(first, first + SEEDS):
            check(after(simulate(seed)))
            if time.process_time() - began > SECONDS:
                break


def test_some_new_seeds() -> None:
    first = random.SystemRandom().randrange(10**9)
    for seed in range(first, first + 5):
        check(simulate(seed))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_once_failed(path: Path) -> None:
    scenario = Scenario.read(path.read_text())
    for seed in range(scenario.seed, scenario.seed + 2):
        check(simulate(replace(scenario, seed=seed)))


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_replays_to_the_last_event(seed: int) -> None:
    one, two = simulate(seed), simulate(seed)
    assert one.story == two.story
    assert one.turns == two.turns


@pytest.mark.parametrize("seed", range(20))
def test_a_scenario_can_be_read_again(seed: int) -> None:
    scenario = worlds.scenario(seed)
    assert Scenario.read(scenario.text()) == scenario


@pytest.mark.slow
def test_a_failing_scenario_is_shrunk_to_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS["a_refusal_that_is_forgotten"](monkeypatch)
    wishes = tuple(Wish(number, 0.01 * number, size=1_000) for number in range(10))
    misfortunes = (Misfortune("refusals", amount=9), *(Misfortune("cut", 0.2 * number) for number in range(9)))
    outcome = simulate(Scenario(0, (2, 2), 2, latency=0.03, wishes=wishes, misfortunes=misfortunes))
    least = shrunk(outcome, 200)
    assert least.scenario == Scenario(least.scenario.seed, misfortunes=misfortunes[:1])
    assert kind_of(least) == kind_of(outcome)
    assert simulate(least.scenario).story == least.story


# What a planted fault raises by itself once it does not fit the code any more; it has not been found then.
UNFIT = ("AttributeError", "TypeError", "NameError")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in RARE])
def test_a_fault_of_the_past_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    seeds = range(LATE.get(fault, 0), MAX_SEEDS)
    found = next(outcome for seed in seeds if (outcome := simulate(seed)).broken)
    assert not [name for name in UNFIT if name in found.broken[0]], f"the planted fault does not fit: {found.broken}"
