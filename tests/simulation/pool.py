"""A pool under simulation: the real dispatcher and sessions, simulated machines, and an oracle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from skyward.core.errors import SkywardError
from skyward.core.events import Events, NodeGone, NodeReady, Note
from skyward.core.image import Image
from skyward.core.machines.plan import Plan
from skyward.core.machines.provision import Provisioner
from skyward.core.nodes.timing import Timing
from skyward.core.protocol.messages import Setup
from skyward.core.spec import Nodes, Order, Resources
from skyward.core.tasks.dispatch import Dispatcher
from skyward.core.tasks.jobs import TaskOptions
from tests.simulation.cloud import Cloud, SimulatedBuyer, SimulatedTransport
from tests.simulation.neighbours import Neighbourhood, SimulatedAuthority
from tests.simulation.network import Line
from tests.simulation.node import Machine, carry_out
from tests.simulation.oracle import Oracle, argument
from tests.simulation.scenario import Scenario, Wish
from tests.simulation.world import Process, World

__all__ = ["Pool"]


class _IO:
    """What `IOThread` is to a pool, without a thread."""

    def __init__(self, process: Process) -> None:
        self.loop = process
        self.is_here = True

    def post(self, function: Callable[..., object], *args: Any) -> None:
        self.loop.call_soon_threadsafe(function, *args)


def _no_thread(*_: object) -> Any:
    raise RuntimeError("simulated processes have no threads")


class Pool:
    """The driver's process with its provisioner and sessions, and the machines.

    Parameters
    ----------
    world
        Where it happens.
    scenario
        Its shape.
    """

    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world = world
        self.oracle = Oracle(world, scenario)
        self.driver = world.process("driver")
        self.network = world.process("network")
        self.machines: dict[str, Machine] = {}
        self.lines: dict[str, Line] = {}
        self.neighbourhood = Neighbourhood(world, scenario.neighbours)
        self.started = False
        """Whether the block was entered."""
        self.failed = False
        """Whether the block could not be entered."""
        self.is_leaving = False
        self.behind = 0.0
        """Seconds that a goodbye may take when the block ends, behind what has been sent."""
        self.events = Events()
        self.events.subscribe(self._heard)
        self._scenario = scenario
        self._work: list[asyncio.Task[None]] = []
        io: Any = _IO(self.driver)
        isolated, nodes = scenario.isolated, Nodes(*scenario.nodes)
        self.dispatcher = Dispatcher(
            io, self.events, isolated=isolated, timeout=None, attempts=3, start_thread=_no_thread
        )
        self.cloud = Cloud(
            world,
            self._boot,
            self._end,
            batch=scenario.batch,
            rented=scenario.rented,
            striped=scenario.striped,
            neighbours=scenario.neighbours > 0.0,
        )
        setup = Setup("", scenario.slots, isolated, None, {}, [], None, [], [], 60.0)
        order = Order("sky-simulated", nodes.max, Resources(), orphan_timeout=60.0)
        provider: Any = self.cloud
        self.plan = Plan([provider], nodes, order, Image(), setup, Timing())
        world.on_stumble = self._stumbled
        self.driver.call_soon(self._open)

    def _stumbled(self) -> None:
        self.oracle.faults += 1

    def _heard(self, event: Any) -> None:
        if isinstance(event, (Note, NodeGone, NodeReady)):
            self.world.tell(f"{event}")
            self.oracle.heard(event)

    def _open(self) -> None:
        buyer: Any = SimulatedBuyer
        authority: Any = SimulatedAuthority
        self.provisioner = Provisioner(self.plan, self.dispatcher.runner, self.events, buyer, authority)
        self._work.append(self.world.run_task(self.driver, self._start()))

    async def _start(self) -> None:
        try:
            await self.provisioner.start()
            self.started = True
        except SkywardError as error:
            self.world.tell(f"the pool does not start: {error}")
            if self.cloud.refused and "returned no machine" in str(error):
                self.world.broken.append(f"the pool does not start, and does not say why: {error}")
            if not self.oracle.faults:
                self.world.broken.append(f"the pool does not start, and nothing went wrong: {error}")
            self.failed = True
            self.oracle.cancelled.update(self.oracle.wishes)
            self.dispatcher.cancel_all()

    def _boot(self, name: str) -> None:
        machine = Machine(self.world, name, self.oracle.started, self.oracle.ended, self.neighbourhood)
        self.machines[name] = machine
        line = Line(self.world, self.network, machine.connect, self._scenario.route)
        self.lines[name] = SimulatedTransport.lines[id(self.world), name] = line

    def _end(self, name: str) -> None:
        if (machine := self.machines.get(name)) is not None:
            machine.gone()
            self.lines[name].close()

    # --- what the user does ---

    def submit(self, wish: Wish) -> None:
        """Submit a task, to be cancelled when its user wants it no more."""
        if self.failed:
            return
        self.world.tell(f"submit {wish}")
        self.oracle.wishes[wish.number] = wish
        options = TaskOptions(isolated=wish.isolated, timeout=wish.timeout, attempts=wish.attempts, large=100_000)
        future = self.dispatcher.submit(carry_out, wish.load, *map(argument, wish.arrays), options=options)
        self.oracle.submitted(wish, future)
        if wish.cancelled is not None:
            self.world.after(wish.cancelled, self.world.awake(self.driver, lambda: self._cancel(wish.number, future)))

    def _cancel(self, number: int, future: Any) -> None:
        self.world.tell(f"cancel {number}")
        self.oracle.cancelled.add(number)
        future.cancel()

    def leave(self) -> None:
        """The block ends: as `RunningPool` does it."""
        self.behind = max((line.behind for line in self.lines.values()), default=0.0)
        self.is_leaving = True
        self.dispatcher.shut("the block has ended")
        self._work.append(self.world.run_task(self.driver, self.provisioner.stop()))

    @property
    def parts(self) -> list[object]:
        """Driver and agents, where something of a task may be."""
        agents = [machine.agent for machine in self.machines.values() if machine.process.alive]
        return [self.dispatcher, self.provisioner, *agents]

    @property
    def is_told(self) -> bool:
        """Whether no agent runs that had an owner; one on a host that came too late never had, and waits for one."""
        alive = [machine.agent for machine in self.machines.values() if machine.process.alive]
        return not any(agent is not None and agent.session is not None for agent in alive)

    @property
    def is_gone(self) -> bool:
        """Whether nothing of it runs on any machine."""
        return not any(machine.process.alive for machine in self.machines.values())

    @property
    def has_left(self) -> bool:
        """Whether the block has ended. What it has bought must be gone then, unless that was warned of."""
        return all(work.done() for work in self._work)

    def close(self) -> None:
        """Free what the simulation itself holds."""
        for name, machine in self.machines.items():
            machine.gone()
            self.lines[name].close()
            del SimulatedTransport.lines[id(self.world), name]
        self.world.close()
        self.dispatcher.close()
