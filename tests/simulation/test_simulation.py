"""The whole product under simulation: new seeds in each run, and faults of the past that it has to find."""

from __future__ import annotations

import random

import pytest

from tests.simulation.planted import FAULTS
from tests.simulation.run import Outcome, simulate

SEEDS = 125
MOST_SEEDS = 10_000


def story_of(outcome: Outcome) -> str:
    return "\n".join(
        [
            f"seed {outcome.seed}: {'; '.join(outcome.broken)}",
            *outcome.story,
            f"again: python -m tests.simulation --seed {outcome.seed}",
        ]
    )


@pytest.mark.parametrize("part", range(8))
def test_new_seeds(part: int) -> None:
    first = random.SystemRandom().randrange(10**9)
    for seed in range(first, first + SEEDS):
        outcome = simulate(seed)
        assert not outcome.broken, story_of(outcome)


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_replays_to_the_last_event(seed: int) -> None:
    one, two = simulate(seed), simulate(seed)
    assert one.story == two.story
    assert one.turns == two.turns


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_past_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    assert any(simulate(seed).broken for seed in range(MOST_SEEDS))
