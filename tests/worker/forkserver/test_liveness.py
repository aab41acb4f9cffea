"""Whether a fork server counts as hung, in virtual time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.worker.forkserver.liveness import LIMITS, Limits, Probe, ProbeState
from skyward.worker.forkserver.protocol import ECHO, EXITED, FAILED, FORKED, UP

PERIOD = LIMITS.period
POLLS = round(LIMITS.answer / PERIOD)

Spans = list[tuple[float, float]]


def test_nobody_is_asked_of_whom_nothing_is_expected() -> None:
    probe = Probe()
    assert [probe.poll() for _ in range(100)] == [ProbeState.IDLE] * 100
    assert not probe.is_needed
    probe.forks(1)
    assert probe.is_needed
    probe.heard(FORKED, 1)
    assert not probe.is_needed


@pytest.mark.parametrize("kill", [True, False])
def test_one_that_leaves_a_question_unanswered_hangs(kill: bool) -> None:
    probe = Probe()
    (probe.kills if kill else probe.forks)(1)
    assert probe.poll() is ProbeState.ASK
    assert [probe.poll() for _ in range(POLLS - 1)] == [ProbeState.WAIT] * (POLLS - 1)
    assert probe.poll() is ProbeState.HUNG


def test_a_slot_that_takes_its_time_to_end_is_not_its_servers_fault() -> None:
    probe = Probe()
    probe.kills(1)
    for _ in range(10 * POLLS):
        assert probe.poll() is ProbeState.ASK
        assert probe.poll() is ProbeState.WAIT
        probe.heard(ECHO, 0)
    probe.heard(EXITED, 1)
    assert probe.poll() is ProbeState.IDLE


def test_what_is_asked_for_before_it_is_up_counts_from_then_on() -> None:
    probe = Probe(start=10 * POLLS)
    probe.forks(1)
    assert [probe.poll() for _ in range(10 * POLLS - 1)] == [ProbeState.WAIT] * (10 * POLLS - 1)
    probe.heard(UP, 0)
    assert [probe.poll() for _ in range(POLLS + 1)] == [
        ProbeState.ASK,
        *[ProbeState.WAIT] * (POLLS - 1),
        ProbeState.HUNG,
    ]


def test_one_that_does_not_start_hangs() -> None:
    probe = Probe(start=3)
    assert [probe.poll() for _ in range(3)] == [ProbeState.WAIT, ProbeState.WAIT, ProbeState.HUNG]
    assert not probe.is_up


def test_a_start_may_take_minutes() -> None:
    assert Limits().start >= 600


@pytest.mark.parametrize("answers", [[FAILED], [FORKED, EXITED]])
def test_a_slot_that_was_to_end_before_it_was_made(answers: list[int]) -> None:
    probe = Probe()
    probe.forks(1)
    probe.kills(1)
    for answer in answers:
        assert probe.is_needed
        probe.heard(answer, 1)
    assert not probe.is_needed


@dataclass
class World:
    """An agent and its fork server, each of which may sleep; what one sends while the other sleeps waits for it.

    Attributes
    ----------
    agent, server
        When they sleep, from and to.
    hangs
        From when on the server does.
    slow
        Seconds that it takes for each answer.
    """

    agent: Spans
    server: Spans
    hangs: float
    slow: float
    probe: Probe = field(default_factory=Probe)
    asked: float | None = None
    verdict: float | None = None

    def awake(self, spans: Spans, at: float) -> float:
        for begin, end in sorted(spans):
            if begin <= at < end:
                at = end
        return at

    def run(self, forks: list[float], until: float) -> None:
        events = [(self.awake(self.agent, at), 0, "fork", number) for number, at in enumerate(forks)]
        heapq.heapify(events)
        polling = False
        while events:
            now, _, what, number = heapq.heappop(events)
            if now > until or self.verdict is not None:
                return
            if what == "fork":
                self.probe.forks(number)
                self.answer(events, now, FORKED, number)
                if not polling:
                    polling = True
                    self.after(events, now)
            elif what == "poll":
                polling = self.poll(events, now)
            else:
                self.probe.heard(int(what), number)

    def poll(self, events: list[tuple[float, int, str, int]], now: float) -> bool:
        state = self.probe.poll()
        if state is ProbeState.ASK:
            self.answer(events, now, ECHO, 0)
        if state is ProbeState.HUNG:
            self.verdict = now
        elif state is not ProbeState.IDLE:
            self.after(events, now)
            return True
        return False

    def after(self, events: list[tuple[float, int, str, int]], now: float) -> None:
        """Poll before reading when both are due as the agent wakes up: the worst case."""
        heapq.heappush(events, (self.awake(self.agent, now + PERIOD), 0, "poll", 0))

    def answer(self, events: list[tuple[float, int, str, int]], now: float, what: int, number: int) -> None:
        at = self.awake(self.server, now) + self.slow
        if at < self.hangs:
            heapq.heappush(events, (self.awake(self.agent, self.awake(self.server, at)), 1, str(what), number))


def spans(longest: float) -> st.SearchStrategy[Spans]:
    """Some that do not overlap, with time between them to answer."""
    pair = st.tuples(st.floats(LIMITS.answer, 500.0), st.floats(0.0, longest))

    def lay(pairs: list[tuple[float, float]]) -> Spans:
        laid, now = [], 0.0
        for gap, length in pairs:
            laid.append((now + gap, now + gap + length))
            now += gap + length
        return laid

    return st.lists(pair, max_size=5).map(lay)


times = st.lists(st.floats(0.0, 3000.0), max_size=10)
slowness = st.floats(0.0, LIMITS.answer / 4)


@given(times, slowness, spans(1e6), spans(LIMITS.answer / 4))
def test_one_that_answers_is_not_killed_however_long_the_agent_slept(
    forks: list[float], slow: float, agent: Spans, server: Spans
) -> None:
    world = World(agent, server, float("inf"), slow)
    world.run(forks, 1e9)
    assert world.verdict is None
    assert not world.probe.is_needed


@given(times, slowness, spans(1e6))
def test_a_machine_that_sleeps_sleeps_with_all_on_it(forks: list[float], slow: float, both: Spans) -> None:
    world = World(both, both, float("inf"), slow)
    world.run(forks, 1e9)
    assert world.verdict is None


@given(st.floats(0.0, 1000.0), st.lists(st.floats(0.0, 900.0), max_size=5), slowness)
def test_one_that_hangs_is_found_soon_after_it_is_needed(hangs: float, before: list[float], slow: float) -> None:
    world = World([], [], hangs, slow)
    needed = max(hangs, 1000.0)
    world.run([*before, needed], 1e9)
    assert world.verdict is not None
    assert hangs <= world.verdict <= needed + LIMITS.answer + 3 * PERIOD
