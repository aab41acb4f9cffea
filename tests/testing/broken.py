"""Providers that break one promise each; test_provider.py runs the suite on them and expects it to see that."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import pytest

from skyward.core.errors import CloudError, NotFound, ProvisioningError
from skyward.providers.libcloud import Libcloud
from skyward.testing.provider import Account, RentalConformance
from tests.lab.clouds.digitalocean import DigitalOcean

FAULTS = ("no_capacity", "quota", "throttle", "server_error", "html", "lost_reply")


class Sound(Libcloud):
    listing_delay = 1.0
    retry_for = 5.0


class PricesByTheMonth(Sound):
    def list_offers(self, driver, resources):
        for offer in super().list_offers(driver, resources):
            yield dataclasses.replace(offer, price=offer.price * 730)


class MemoryInMegabytes(Sound):
    def list_offers(self, driver, resources):
        for offer in super().list_offers(driver, resources):
            yield dataclasses.replace(offer, memory=offer.memory // 2**20)


class TellsItsSecrets(Sound):
    def settings(self):
        return {**super().settings(), "key": self.key}


class ShowsEveryPool(Sound):
    def list_machines(self, driver, tag):
        return super().list_machines(driver, None)


class ComplainsOfUnknownMachines(Sound):
    def destroy(self, ids):
        for id in ids:
            if not any(machine.id == id for machine in self.all_machines()):
                raise NotFound(f"libcloud: there is no {id}")
        super().destroy(ids)


class LeavesKeysBehind(Sound):
    def clear_leftovers(self, driver, tag):
        pass


class RunsWithoutAnAddress(Sound):
    def list_machines(self, driver, tag):
        return [dataclasses.replace(machine, endpoint=None) for machine in super().list_machines(driver, tag)]


class IsUnsureOfARefusal(Sound):
    def create_machines(self, driver, order):
        try:
            return super().create_machines(driver, order)
        except ProvisioningError as error:
            raise CloudError(str(error)) from error


class IsSureOfALostReply(Sound):
    def create_machines(self, driver, order):
        try:
            return super().create_machines(driver, order)
        except CloudError as error:
            raise ProvisioningError(str(error)) from error


class SharesItsDriver(Sound):
    """All threads are one to it, and its answers are those of whoever asked last."""

    last: list = []  # noqa: RUF012

    def list_machines(self, driver, tag):
        self.last.append(tag)
        found = super().list_machines(driver, tag)
        return found if self.last[-1] == tag else super().list_machines(driver, self.last[-1])


BROKEN = list(Sound.__subclasses__())


class TestBroken(RentalConformance):
    time_limit = 2.5

    @pytest.fixture(params=BROKEN, ids=lambda kind: kind.__name__)
    def rental(self, request) -> Iterator[Account]:
        with DigitalOcean() as cloud:
            make = functools.partial(request.param, "digitalocean", url=cloud.url)
            yield Account(
                make(cloud.token),
                live=lambda: cloud.meter.live,
                impostor=make("no-such-token"),
                faults={name: functools.partial(cloud.faults.on, name) for name in FAULTS},
                calm=cloud.faults.clear,
            )
