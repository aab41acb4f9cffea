"""Purchases are recorded before they are made, can be logged in to, and their cost is reported at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from skyward.core.errors import CloudError, NoCapacity, ProvisioningError
from skyward.core.machines.buyer import Buyer
from skyward.core.machines.estimates import Rented, keep
from skyward.core.spec import Endpoint, Machine, Offer, Order, Resources
from tests.core.folder_cloud import FolderCloud

ORDER = Order("sky-1", 1, Resources(), name="sky-1-1", offer=Offer("small", price=0.36))


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderCloud:
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    (tmp_path / "cloud").mkdir()
    return FolderCloud(str(tmp_path / "cloud"))


@pytest.fixture
def buyer(cloud: FolderCloud) -> Iterator[Buyer]:
    it = Buyer("sky-1", [cloud])
    yield it
    if it.ledger.pools():  # the test has not closed it itself
        it.close(1)


def test_a_purchase_is_recorded_and_its_cost_reported(cloud: FolderCloud, buyer: Buyer) -> None:
    (machine,) = buyer.buy(cloud, ORDER)
    assert [entry.id for entry in buyer.ledger.machines("sky-1")] == [machine.id]
    buyer.end(cloud, [machine.id])
    assert cloud.machines("sky-1") == []
    assert all(entry.ended is not None for entry in buyer.ledger.machines("sky-1"))
    note = buyer.close(1)
    assert note.text.startswith("0 machines left of 1, $0.00")
    assert not note.warning
    assert buyer.ledger.pools() == []


def test_what_was_estimated_stands_beside_what_was_spent(cloud: FolderCloud, buyer: Buyer) -> None:
    (machine,) = buyer.buy(cloud, ORDER)
    keep(Rented(cloud.name, "small", False), 1, 0.5)
    buyer.end(cloud, [machine.id])
    assert buyer.close(1).text.endswith(" spent ($0.5000 estimated)")


@pytest.mark.parametrize(("fault", "kind", "is_open"), [("full", NoCapacity, False), ("down", CloudError, True)])
def test_only_an_order_that_surely_made_nothing_is_closed(
    cloud: FolderCloud, buyer: Buyer, fault: str, kind: type[Exception], is_open: bool
) -> None:
    (Path(cloud.folder) / fault).touch()
    with pytest.raises(kind):
        buyer.buy(cloud, ORDER)
    assert (buyer.ledger.last_order("sky-1") is not None) is is_open


def test_a_machine_is_reached_with_the_keys_of_its_order_and_nothing_of_the_users(
    cloud: FolderCloud, buyer: Buyer
) -> None:
    buyer.buy(cloud, ORDER)
    found = Machine("m", Endpoint("ssh", "192.0.2.1", user="root"), "m", order="sky-1-1")
    endpoint = buyer.with_keys(found).endpoint
    assert endpoint is not None
    assert str(endpoint.options["host_key"]).startswith("ssh-ed25519 ")
    assert endpoint.options["keys"] == [str(buyer.ledger.key_path("sky-1"))]
    assert (endpoint.options["config"], endpoint.options["jump"]) == ([], "none")
    with pytest.raises(ProvisioningError, match="was not ordered by this pool: 'sky-1-9'"):
        buyer.with_keys(Machine("x", found.endpoint, "x", order="sky-1-9"))
