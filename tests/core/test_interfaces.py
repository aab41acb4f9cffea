"""Our own parts keep the contracts that third parties' are held to."""

from __future__ import annotations

import pytest

from skyward.core import registry
from skyward.core.image import Image
from skyward.core.interfaces import Inspectable, Plugin, Provider, Rental, Trait


def members(protocol: type) -> list[str]:
    return [name for name in {**vars(protocol), **protocol.__annotations__} if not name.startswith("_")]


@pytest.mark.parametrize("name", registry.names(registry.PROVIDERS))
def test_a_provider_is_a_rental_if_its_machines_cost_money(name: str) -> None:
    kind = registry.load(registry.PROVIDERS, name)
    assert [member for member in members(Provider) if not hasattr(kind, member)] == []
    assert all(hasattr(kind, member) for member in members(Rental)) == (Trait.RENTED in kind.traits)
    assert kind.name == name
    assert issubclass(kind, Inspectable) == (Trait.RENTED in kind.traits)


@pytest.mark.parametrize("name", registry.names(registry.TRANSPORTS))
def test_a_transport_has_a_name_and_says_whether_to_stripe(name: str) -> None:
    kind = registry.load(registry.TRANSPORTS, name)
    assert kind.name == name
    assert kind.striped in (True, False)
    kind()  # made without arguments


def test_a_plugin_does_nothing_unless_it_overrides_a_hook() -> None:
    image = Image()
    assert Plugin().transform_image(image, driver_environment=True) is image
    assert Plugin().around_worker() is None
