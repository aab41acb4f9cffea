"""Time limits of a session, and how long a node may be without a link. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["Timing", "link_patience"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Time limits of a session, in seconds.

    Attributes
    ----------
    greeting
        For the agent's answer to the greeting.
    beat
        Between two heartbeats.
    silence
        Without a byte from the node until its link counts as broken.
    give_up
        Without a link until the node counts as lost, if it is the only one.
    give_up_alone
        The same while another node has been reachable all that time, so that the line from here is not to blame.
    give_up_all
        The same while no node is reachable, so that it probably is. Never beyond the agents' own patience.
    ready
        From reaching the agent until its slots must have started.
    farewell
        For the agent to answer a goodbye.
    parting
        For the goodbye altogether: the link may be broken just then, and another one has to be made first.
    """

    greeting: float = 15.0
    beat: float = 2.0
    silence: float = 12.0
    give_up: float = 60.0
    give_up_alone: float = 20.0
    give_up_all: float = 300.0
    ready: float = 600.0
    farewell: float = 2.0
    parting: float = 15.0


def link_patience(timing: Timing, orphan_timeout: float, others: Collection[float]) -> float:
    """Return for how many seconds a node may be without a link.

    Parameters
    ----------
    timing
        The pool's time limits.
    orphan_timeout
        Seconds after which an agent without an owner ends itself.
    others
        For each other node, the seconds for which it has had a link.
    """
    if not others:
        return timing.give_up
    if any(seconds >= timing.give_up_alone for seconds in others):
        return timing.give_up_alone
    return max(timing.give_up, min(timing.give_up_all, orphan_timeout))
