"""A task that the peer has lost is found, and one that it has never is, whatever overtakes what."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from skyward.core.protocol.roll_call import RollCall
from tests.examples import examples


def test_only_what_was_held_for_a_while_is_asked_for() -> None:
    roll = RollCall()
    assert roll.ask({1: 1}) == []
    assert roll.ask({1: 1, 2: 2}) == [1]
    assert roll.ask({1: 1, 2: 2}) == []  # the answer is on its way
    assert roll.unanswered == 1
    assert roll.lost([1, 2], {1: 1, 2: 2}) == [1]
    assert roll.unanswered == 0
    assert roll.ask({2: 2}) == [2]


def test_an_answer_that_nobody_asked_for_means_nothing() -> None:
    assert RollCall().lost([1, 2], {1: 1, 2: 2}) == []


def test_an_answer_about_an_earlier_hand_over_means_nothing() -> None:
    roll = RollCall()
    roll.ask({1: 1})
    assert roll.ask({1: 1}) == [1]
    assert roll.lost([1], {1: 7}) == []  # it came back, and was handed over again


class Owner(RuleBasedStateMachine):
    """An owner and a node. What is on its way arrives in any order where messages may be large, else in order."""

    def __init__(self) -> None:
        super().__init__()
        self.roll = RollCall()
        self.marks: dict[int, int] = {}  # what the owner thinks the node has
        self.last = self.task = 0
        self.runs: list[tuple[int, int]] = []  # on their way, in any order
        self.arrived: set[int] = set()  # marks that the owner knows to have arrived
        self.questions: list[list[int]] = []
        self.node: set[int] = set()
        self.said: list[int] = []  # answers on their way, in any order
        self.missing: list[list[int]] = []
        self.eaten: set[int] = set()  # what the node has lost

    @rule()
    def hand_over(self) -> None:
        self.task += 1
        self._hand_over(self.task)

    def _hand_over(self, task: int) -> None:
        self.last += 1
        self.marks[task] = self.last
        self.runs.append((task, self.last))

    @rule(data=st.data())
    def run_arrives(self, data: st.DataObject) -> None:
        if self.runs:
            task, mark = self.runs.pop(data.draw(st.integers(0, len(self.runs) - 1)))
            self.node.add(task)
            self.arrived.add(mark)

    @rule(data=st.data())
    def node_answers(self, data: st.DataObject) -> None:
        if self.node:
            task = data.draw(st.sampled_from(sorted(self.node)))
            self.node.discard(task)
            self.said.append(task)  # not acknowledged: the node knows of it until then

    @rule(data=st.data(), again=st.booleans())
    def answer_arrives(self, data: st.DataObject, again: bool) -> None:
        if self.said:
            task = self.said.pop(data.draw(st.integers(0, len(self.said) - 1)))
            del self.marks[task]
            if again:  # it was given back, or tried again
                self._hand_over(task)

    @rule(data=st.data())
    def node_loses(self, data: st.DataObject) -> None:
        if self.node:
            task = data.draw(st.sampled_from(sorted(self.node)))
            self.node.discard(task)
            self.eaten.add(task)

    @rule()
    def ask(self) -> None:
        held = {task: mark for task, mark in self.marks.items() if mark in self.arrived}
        if asked := self.roll.ask(held):
            self.questions.append(asked)

    @rule()
    def question_arrives(self) -> None:
        if self.questions:
            known = self.node | set(self.said)
            self.missing.append([task for task in self.questions.pop(0) if task not in known])

    @rule()
    def reply_arrives(self) -> None:
        if self.missing:
            for task in self.roll.lost(self.missing.pop(0), self.marks):
                assert task in self.eaten, "it was there, or its answer was on its way"
                self.eaten.discard(task)
                del self.marks[task]

    def teardown(self) -> None:
        for _ in range(4):  # everything that was lost is found, in a few rounds
            self.ask()
            self.question_arrives()
            self.reply_arrives()
        assert not self.eaten


TestOwner = Owner.TestCase
TestOwner.settings = examples(100, stateful_step_count=40)
