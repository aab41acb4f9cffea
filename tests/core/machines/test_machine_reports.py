"""Listeners hear of each rented machine once, with its price, and since when it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from skyward.core.events import Event, Events, MachineEnded, MachineInfo, MachineMade
from skyward.core.image import Image
from skyward.core.interfaces import Trait
from skyward.core.machines.machine_reports import MachineReports
from skyward.core.machines.plan import Plan
from skyward.core.nodes.timing import Timing
from skyward.core.protocol.messages import Setup
from skyward.core.spec import Machine, Nodes, Offer, Order, Resources


class Rents:
    """As much of a provider as is asked here."""

    name = "moon"
    traits: ClassVar = {Trait.RENTED}


class Hosts(Rents):
    name = "hosts"
    traits: ClassVar = set()


OFFER = Offer("large", region="crater", spot=True, price=0.5)
INFO = MachineInfo("moon", "large", 0.5, True, "crater")
MACHINE = Machine("m-1", None, "machine 1", order="tag-1")


class Reports(MachineReports):
    """With a clock, and a list of what was heard."""

    def __init__(self) -> None:
        providers: Any = [Rents(), Hosts()]
        setup = Setup("", 1, True, None, {}, [], None, [], [], 60.0)
        plan = Plan(providers, Nodes(1, 2), Order("tag", 1, Resources()), Image(), setup, Timing())
        self.now, self.heard, events = 100.0, list[Event](), Events()
        events.subscribe(self.heard.append)
        super().__init__(plan, events, lambda: self.now)


def test_a_machine_costs_from_its_order_to_its_end() -> None:
    reports = Reports()
    reports.ordered("tag-1", OFFER)
    reports.now += 7
    for _ in range(2):  # a poll shows it as well
        reports.made(0, [MACHINE])
    for _ in range(2):
        reports.ended(0, ["m-1", "of somebody else"])
    reports.made(0, [MACHINE])
    assert reports.heard == [MachineMade("m-1", INFO, 7.0), *[MachineEnded("m-1", "moon")] * 2]


def test_one_that_nobody_remembers_to_have_ordered_has_no_price() -> None:
    reports = Reports()
    reports.made(0, [replace(MACHINE, order="")])
    assert reports.heard == [MachineMade("m-1", MachineInfo("moon"), 0.0)]


def test_hosts_are_not_rented() -> None:
    reports = Reports()
    reports.ordered("tag-1", None)
    reports.made(1, [MACHINE])
    reports.ended(1, ["m-1"])
    assert reports.heard == []
    assert reports.info(1, MACHINE) == MachineInfo("hosts", "machine 1", 0.0)
