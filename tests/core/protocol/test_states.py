"""Order: the table of legal moves, and what follows from it for any course of a conversation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.errors import ProtocolError
from skyward.core.protocol.messages import MESSAGES, Bye, Hello, Message, Ping, Proof, Run, Welcome
from skyward.core.protocol.states import REQUIRES, TALK, TRANSITIONS, Role, State, next_state

START = {Role.OWNER: State.START, Role.AGENT: State.START}
OPEN = {Role.OWNER: State.OPEN, Role.AGENT: State.OPEN}

moves = st.lists(st.tuples(st.sampled_from(Role), st.sampled_from(MESSAGES)))
greeting = st.just([(Role.OWNER, Hello), (Role.AGENT, Welcome), (Role.OWNER, Proof)])


def play(course: list[tuple[Role, type[Message]]]) -> list[tuple[Role, type[Message], dict[Role, State]]]:
    """The moves that are allowed, one after another, and the states after each."""
    states, done = dict(START), []
    for role, kind in course:
        try:
            states[role] = next_state(states, role, kind)
        except ProtocolError:
            continue
        done.append((role, kind, dict(states)))
    return done


def test_the_greeting_opens_both_ends() -> None:
    course: list[tuple[Role, type[Message]]] = [(Role.OWNER, Hello), (Role.AGENT, Welcome), (Role.OWNER, Proof)]
    assert [kind for _, kind, _ in play(course)] == [Hello, Welcome, Proof]
    assert play(course)[-1][2] == OPEN


@given(moves)
def test_nothing_is_talked_about_before_both_ends_have_proved_who_they_are(
    course: list[tuple[Role, type[Message]]],
) -> None:
    said = [kind for _, kind, _ in play(course) if kind is not Bye]  # that may be said to anybody
    assert said[:3] == [Hello, Welcome, Proof][: len(said)]


@given(greeting, moves)
def test_who_has_said_goodbye_says_nothing_more(
    greeting: list[tuple[Role, type[Message]]], course: list[tuple[Role, type[Message]]]
) -> None:
    said = play(greeting + course)
    for role in Role:
        kinds = [kind for who, kind, _ in said if who is role]
        assert Bye not in kinds[:-1]


@given(greeting, moves)
def test_the_other_end_may_finish_what_it_has_to_say(
    greeting: list[tuple[Role, type[Message]]], course: list[tuple[Role, type[Message]]]
) -> None:
    """After a goodbye of one end, everything that the other may say in OPEN is legal."""
    states = (play(greeting + course) or [(None, None, START)])[-1][2]
    for role in Role:
        if states[role] is State.OPEN and states[role.peer] is State.CLOSED:
            assert {next_state(states, role, kind) for kind in TALK[role]} == {State.OPEN}


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_message_is_somebody_s_to_send(kind: type[Message]) -> None:
    assert any(kind in kinds for table in TRANSITIONS.values() for kinds in table.values())


def test_what_needs_the_other_end_in_a_state_is_refused_in_any_other() -> None:
    for kind, needs in REQUIRES.items():
        role = Role.AGENT if kind is Welcome else Role.OWNER
        mine = next(state for state, kinds in TRANSITIONS[role].items() if kind in kinds)
        for theirs in (State.START, State.GREETED, State.OPEN):
            if theirs is not needs:
                with pytest.raises(ProtocolError, match=f"can't send {kind.__name__}"):
                    next_state({role: mine, role.peer: theirs}, role, kind)


@pytest.mark.parametrize(("role", "kind"), [(Role.AGENT, Run), (Role.OWNER, Welcome)])
def test_an_end_does_not_say_what_is_the_other_s_to_say(role: Role, kind: type[Message]) -> None:
    with pytest.raises(ProtocolError):
        next_state(OPEN, role, kind)


def test_a_heartbeat_changes_nothing() -> None:
    assert all(next_state(OPEN, role, Ping) is State.OPEN for role in Role)
