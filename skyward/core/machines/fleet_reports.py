"""What a fleet's state means to the user, in words: orders that go out, why too few came, what may be left. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from skyward.core.errors import ProvisioningError, SkywardError
from skyward.core.interfaces import Provider
from skyward.core.machines.fleet import Left
from skyward.core.machines.fleet_events import Command, Create
from skyward.core.machines.refusals import without_name

__all__ = ["exhausted_text", "left_text", "order_texts", "why_too_few"]

_MAX_LINES = 8  # refusals that one error lists


def order_texts(commands: Sequence[Command], providers: Sequence[Provider]) -> Iterator[str]:
    """One line for all orders of a kind, since some providers take only orders of one machine."""
    counts: Counter[tuple[str, str, float | None]] = Counter()
    for command in commands:
        if isinstance(command, Create) and (offer := command.candidate.offer) is not None:
            counts[providers[command.candidate.source].name, str(offer), offer.price] += command.count
    for (name, text, price), count in counts.items():
        total = f", ${price * count:.4g}/h in total" if price and count > 1 else ""
        yield f"{name}: ordering {count} x {text}{total}"


def why_too_few(first: SkywardError | None, refusals: Sequence[SkywardError], wanted: int) -> SkywardError:
    """The error to raise when too few nodes could be provisioned.

    Parameters
    ----------
    first
        The first error of a machine that was there.
    refusals
        Why orders were refused.
    wanted
        The minimum number of nodes.
    """
    error = first or (refusals[0] if refusals else None)
    if error is None or len(refusals) <= 1:
        return error or ProvisioningError("the provider returned no machine")
    texts = list(dict.fromkeys(str(refusal) for refusal in refusals))
    lines = "".join(f"\n  {text}" for text in texts[:_MAX_LINES])
    lines += f"\n  and {len(texts) - _MAX_LINES} more" if len(texts) > _MAX_LINES else ""
    kinds = {type(refusal) for refusal in refusals}
    kind = type(error) if len(kinds) == 1 else ProvisioningError
    whole = kind(f"could not provision {wanted} node(s); all that was tried was refused:{lines}")
    whole.__cause__ = error
    return whole


def exhausted_text(reason: str, done: int) -> str:
    """Why tasks can no longer run, and how many had ended by then."""
    return f"{reason}; {done} task{'s' if done != 1 else ''} had ended by then"


def left_text(left: Left, tag: str) -> str:
    """A warning that machines may be left running. They stay in the ledger, and the reaper goes on trying."""
    machines = ", ".join(f"{id} at {name}" for name, id in sorted(left.machines))
    failed = f"could not terminate {machines}" if machines else f"could not confirm that nothing of {tag} is left"
    cost = "it may still cost money" if left.price is None else f"it may still cost about ${left.price:.4g}/h"
    text = f"{failed}; {cost}. "
    for name, error in left.given_up:
        text += f"{name} refuses the credentials: {without_name(error, name)}. "
    command = f"skyward down {tag}"
    text += f"Run this with credentials that may terminate it: {command}. " if left.given_up else f"Try: {command}. "
    return f"{text}A background process also keeps trying once this program has ended"
