"""What the user reads about orders, refusals, and machines that may be left."""

from __future__ import annotations

from typing import ClassVar

from skyward.core.errors import AuthFailed, CloudError, HostUnreachable, NoCapacity, ProvisioningError, QuotaExceeded
from skyward.core.machines.fleet import Left
from skyward.core.machines.fleet_events import Candidate, Create, Poll
from skyward.core.machines.fleet_reports import left_text, order_texts, why_too_few
from skyward.core.spec import Offer
from tests.core.folder_cloud import FolderCloud


class Other(FolderCloud):
    name: ClassVar[str] = "other"


def test_orders_of_one_kind_share_a_line() -> None:
    providers = [FolderCloud(""), Other("")]
    small, large = Offer("small", price=0.5), Offer("large")
    commands = [
        Create("a", Candidate(0, small), 1),
        Create("b", Candidate(0, small), 2),
        Create("c", Candidate(1, small), 1),
        Create("d", Candidate(0, large), 2),
        Create("e", Candidate(0, None), 2),  # no offer: nothing is bought
        Poll(0),
    ]
    assert list(order_texts(commands, providers)) == [
        f"folder: ordering 3 x {small}, $1.5/h in total",
        f"other: ordering 1 x {small}",
        f"folder: ordering 2 x {large}",
    ]


def test_the_only_reason_is_raised_as_it_is() -> None:
    first, refusal = HostUnreachable("x"), NoCapacity("y")
    assert why_too_few(first, [], 2) is first
    assert why_too_few(None, [refusal], 2) is refusal
    assert str(why_too_few(None, [], 2)) == "the provider returned no machine"


def test_several_reasons_are_listed_once_each() -> None:
    error = why_too_few(None, [NoCapacity("a: none"), NoCapacity("b: none"), NoCapacity("a: none")], 2)
    assert type(error) is NoCapacity
    expected = "could not provision 2 node(s); all that was tried was refused:\n  a: none\n  b: none"
    assert str(error) == expected
    mixed = why_too_few(None, [NoCapacity("a"), QuotaExceeded("b")], 1)
    assert type(mixed) is ProvisioningError
    assert isinstance(mixed.__cause__, NoCapacity)
    many = why_too_few(None, [CloudError(f"reason {number}") for number in range(10)], 1)
    assert str(many).endswith("\n  reason 7\n  and 2 more")


def test_what_is_left_is_named_with_its_price_and_the_way_out() -> None:
    refused = AuthFailed("folder: expired")
    text = left_text(Left([("folder", "m2"), ("folder", "m1")], 0.2412, [("folder", refused)]), "sky-1")
    assert text == (
        "could not terminate m1 at folder, m2 at folder; it may still cost about $0.2412/h. "
        "folder refuses the credentials: expired. Run this with credentials that may terminate it: skyward down sky-1. "
        "A background process also keeps trying once this program has ended"
    )
    text = left_text(Left([], None, []), "sky-1")
    assert text.startswith("could not confirm that nothing of sky-1 is left; it may still cost money. Try: skyward")
