"""A pool under simulation: the real dispatcher and sessions, simulated machines, and an oracle."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import pickle
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from skyward.core.code.local_code import CodeSettings, CodeVersion
from skyward.core.errors import PackagesFailed, PoolNotActive, SkywardError
from skyward.core.events import Events, NodeGone, NodeReady, Note, PoolClosed, PoolDraining, PoolStarted
from skyward.core.gpus import needed, per_gpu
from skyward.core.image import Image
from skyward.core.machines.budget import MIN_SECONDS
from skyward.core.machines.clocks import Clocks
from skyward.core.machines.plan import Plan
from skyward.core.machines.provision import Provisioner
from skyward.core.nodes.timing import Timing
from skyward.core.packages.lists import PackageLists
from skyward.core.payload import pickling
from skyward.core.protocol.messages import Setup
from skyward.core.results.names import Trusted
from skyward.core.results.reader import Reader
from skyward.core.resume.resuming import resuming
from skyward.core.spec import Nodes, Order, Resources
from skyward.core.tally import Tally
from skyward.core.tasks.answers import Answers
from skyward.core.tasks.dispatch import Dispatcher
from skyward.core.tasks.jobs import TaskGroup, TaskOptions
from skyward.joblib_ext.batch import Batch, plain_parts
from tests.simulation.cards import Cards
from tests.simulation.cloud import MARKETS, Cloud, Hosts, SimulatedBuyer, SimulatedTransport, Twin
from tests.simulation.editing import EditedProgram
from tests.simulation.folders import UsersFolder
from tests.simulation.keeping import Cached, ResultFile
from tests.simulation.load import Array, Uses, carry_out, carry_out_as_well
from tests.simulation.neighbours import Neighbourhood, SimulatedAuthority
from tests.simulation.network import Line
from tests.simulation.node import Machine
from tests.simulation.oracle import Oracle, argument, items
from tests.simulation.scenario import Edit, Scenario, Wish
from tests.simulation.sharing import NumberedFile
from tests.simulation.talk import listeners
from tests.simulation.world import MEMORY, Process, World

__all__ = ["Pool"]

_CARRY_OUT = pickle.dumps(carry_out)
pickling.PLAIN[Batch] = plain_parts  # as joblib's front end has it


class _IO:
    """What `IOThread` is to a pool, without a thread."""

    def __init__(self, process: Process) -> None:
        self.loop = process
        self.is_here = True

    def post(self, function: Callable[..., object], *args: Any) -> None:
        self.loop.call_soon_threadsafe(function, *args)


def _results_of(scenario: Scenario, before: Pool | None) -> ResultFile | None:
    """The file for results, as the program's run before has left it."""
    if before is None:
        return ResultFile() if scenario.resumes else None
    assert before.results is not None
    if before.oracle.is_over:
        return before.results.as_it_is()
    before.results.bring_back()
    before.dispatcher.close()
    return before.results


def _folder_of(scenario: Scenario, before: Pool | None) -> UsersFolder | None:
    """The user's folder, if nodes need one; as it was at first, when the program is run again."""
    if before is None or before.folder is None:
        return UsersFolder(scenario.seed, scenario.folder) if scenario.folder else None
    folder, before.folder = before.folder, None
    folder.restore()
    return folder


def _folder_for_work(scenario: Scenario) -> str | None:
    """Where tasks work, if not in a folder of the node's own; a user's folder would be put there by each machine."""
    if not scenario.env or scenario.folder:
        return None
    return tempfile.mkdtemp(prefix="skyward-simulation-", dir=MEMORY)


def _no_thread(*_: object) -> Any:
    raise RuntimeError("simulated processes have no threads")


class Packages:
    """The driver's environment: it has the package that nodes lack, or only thought so."""

    def late(self, module: str) -> PackageLists | None:
        return PackageLists((f"{module}==1.0",))


class Pool:
    """The driver's process with its provisioner and sessions, and the machines.

    Parameters
    ----------
    world
        Where it happens.
    scenario
        Its shape.
    before
        The one of the program's run before this one.
    """

    def __init__(self, world: World, scenario: Scenario, before: Pool | None = None) -> None:
        self.world = world
        self.results = _results_of(scenario, before)
        self.oracle = Oracle(world, scenario)
        self.driver, self.network = world.process("driver"), world.process("network")
        self.machines: dict[str, Machine] = {}
        self.lines: dict[str, Line] = {}
        self.neighbourhood = Neighbourhood(world, scenario.neighbours)
        self.started = self.failed = False
        """Whether the block was entered, and whether that was impossible."""
        self.is_leaving = False
        self.is_withdrawn = False
        self.is_warned = False
        """Whether the user knows that machines are left, since the provider refuses the credentials."""
        self.deafness = 0
        """How many things there have been after which an agent may not hear a goodbye."""
        self.behind = 0.0
        """Seconds that a goodbye may take when the block ends, behind what has been sent."""
        self.events = Events()
        self.events.subscribe(self._heard)
        self.tally = Tally()
        self.events.subscribe(lambda event: self.tally.add(event, world.now))
        self.scenario = scenario
        self._work: list[asyncio.Task[None]] = []
        self._followers: dict[int, list[Wish]] = {}
        self._nodes: dict[str, str] = {}  # that have ever been ready, and their machines
        nodes = Nodes(*scenario.nodes)
        self._program = EditedProgram(self.driver) if scenario.has_code else None
        self.folder = _folder_of(scenario, before)
        self._work_folder = _folder_for_work(scenario)
        self._versions: weakref.WeakSet[CodeVersion] = weakref.WeakSet()  # that some task may have
        self._calls: dict[int, dict[str, int]] = {}  # state of the code when the call of each group began
        self.dispatcher = self._make_dispatcher()
        self._groups = [
            TaskGroup(limit, arrays=self.dispatcher.arrays(limit), change=self.dispatcher.surroundings.now())
            for limit in scenario.limits
        ]
        self.cloud = self._make_cloud(first=1 if before is None else 101)
        self.clouds = self._with_hosts(first=201 if before is None else 301)
        order = Order("sky-simulated", nodes.max, Resources(), orphan_timeout=60.0)
        self.budget = scenario.budget if scenario.rented else None
        self.plan = Plan(self.clouds, nodes, order, Image(), self._make_setup(), Timing(), budget=self.budget)
        world.on_stumble = self._stumbled
        self.driver.call_soon(self._open)

    def _make_setup(self) -> Setup:
        scenario = self.scenario
        return Setup(
            "",
            scenario.slots,
            scenario.isolated,
            None,
            {"SIMULATED": "1"} if scenario.env else {},
            [],
            self._work_folder,
            [],
            [],
            60.0,
            code=scenario.has_code,
            gpus=scenario.gpus,
            load=scenario.load,
        )

    def _make_cloud(self, first: int, of: Cloud | None = None) -> Cloud:
        return (Cloud if of is None else Twin)(
            self.world,
            self._boot,
            self._end,
            batch=self.scenario.batch,
            rented=self.scenario.rented,
            local=self.scenario.local,
            striped=self.scenario.striped,
            neighbours=self.scenario.neighbours > 0.0,
            first=first,
            market=self.scenario.market,
            records=None if of is None else of.records,
        )

    def _with_hosts(self, first: int) -> list[Cloud]:
        """The provider, and what there is beside it, in the order in which they are tried."""
        if self.scenario.twin:
            return [self.cloud, self._make_cloud(first, of=self.cloud)]
        if not self.scenario.hosts:
            return [self.cloud]
        hosts = Hosts(
            self.world,
            self._boot,
            self._end,
            batch=True,
            rented=False,
            local=False,
            striped=self.scenario.striped,
            neighbours=self.scenario.neighbours > 0.0,
            first=first,
            capacity=abs(self.scenario.hosts),
        )
        return [hosts, self.cloud] if self.scenario.hosts > 0 else [self.cloud, hosts]

    def _make_dispatcher(self) -> Dispatcher:
        io: Any = _IO(self.driver)
        make: Any = Dispatcher if self.results is None else resuming(self.results.path)
        made: Dispatcher = make(
            io,
            self.events,
            isolated=self.scenario.isolated,
            timeout=None,
            attempts=3,
            shares=self.scenario.local,
            make_file=NumberedFile,
            start_thread=_no_thread,
            listeners=listeners(self.world),
            supplier=Packages(),
            answers=Answers(Reader(Trusted(modules=frozenset({Array.__module__}))) if self.scenario.data else None),
            local_code=None if self._program is None else CodeSettings(sent=True, program=self._program),
        )
        return made

    def _stumbled(self) -> None:
        self.oracle.faults += 1
        self.deafness += 1

    def _heard(self, event: Any) -> None:
        if isinstance(event, (Note, NodeGone, NodeReady)):
            self.world.tell(f"{event}")
            self.oracle.heard(event)
            if isinstance(event, NodeReady):
                lives = self.provisioner._lives.values()
                life = next(life for life in lives if life.name == event.node)
                self._nodes[event.node] = life.machine.name
                assert life.session is not None
                life.session.supply = functools.partial(self._install, self.machines[life.machine.name])
            self.deafness += isinstance(event, NodeGone) and not self.is_leaving
        forgivable = self.cloud.was_denied or self.oracle.slips > 0
        if isinstance(event, Note) and event.warning and forgivable and self.is_leaving:
            self.is_warned = True

    async def _install(self, machine: Machine, _: PackageLists) -> None:
        """Install a package on a node."""
        await asyncio.sleep(self.world.random.choice((0.01, 1.0, 20.0)))
        problems = (None, None, None, PackagesFailed("simulated: no wheel"), OSError("simulated: no disk"))
        problem = self.world.random.choice(problems)
        if problem is not None:
            self.oracle.refused_packages += 1
            raise problem
        machine.has_package = True

    def _open(self) -> None:
        buyer: Any = SimulatedBuyer
        authority: Any = SimulatedAuthority
        clocks = Clocks(lambda: self.world.now, lambda: -self.driver.offset)  # it stands still while the driver sleeps
        files = self.dispatcher.runner.files
        if self.folder is not None:
            files.mount([self.folder.volume])
        self.provisioner = Provisioner(
            self.plan, self.dispatcher.runner, self.events, buyer, authority, clocks=clocks, bring=files.bring
        )
        self.look()
        self.events.emit(PoolStarted("", "simulated", self.plan.nodes.max, self.scenario.slots))
        self._work.append(self.world.run_task(self.driver, self._start()))

    async def _start(self) -> None:
        try:
            await self.provisioner.start()
            self.started = True
        except SkywardError as error:
            self.world.tell(f"the pool does not start: {error}")
            if "returned no machine" in str(error):  # it returns some, or refuses
                self.world.broken.append(f"the pool does not start, and does not say why: {error}")
            if not self.oracle.faults and not self._is_poor and not self._lacks_gpus:
                self.world.broken.append(f"the pool does not start, and nothing went wrong: {error}")
            self.failed = True
            self.oracle.cancelled.update(self.oracle.wishes)
            self.dispatcher.cancel_all()

    @property
    def _is_poor(self) -> bool:
        """Whether the budget does not pay for the least nodes, of the cheapest kind, for the least time."""
        prices = [offer.price for offer in MARKETS[self.scenario.market] if offer.price is not None]
        least = self.plan.nodes.min * min(prices, default=math.inf) * MIN_SECONDS / 3600.0
        return self.budget is not None and self.budget < least

    @property
    def _lacks_gpus(self) -> bool:
        """Whether machines have fewer GPUs than their slots need."""
        gpus, slots = self.scenario.gpus, self.scenario.slots
        return gpus > 0 and needed(gpus, slots) > self.scenario.cards

    def _boot(self, name: str) -> None:
        oracle = self.oracle
        saved = oracle.saved.add if self.scenario.saves else None
        cards = Cards(self.world, self.scenario.cards, per_gpu(self.scenario.gpus or 1))
        machine = Machine(self.world, name, oracle.started, oracle.ended, self.neighbourhood, cards, saved)
        machine.folder_of_user, machine.memory = self.folder, self.scenario.memory
        machine.room, machine.files, machine.data = self.scenario.room, self.scenario.files, self.scenario.data
        if self.folder is not None and self.scenario.local:
            machine.cache = self.folder.cache
        self.oracle.faults += self.scenario.room < 1 << 40 or self.scenario.files < 1 << 16
        self.machines[name] = machine
        line = Line(self.world, self.network, machine.answer, self.scenario.route)
        self.lines[name] = SimulatedTransport.lines[id(self.world), name] = line

    def _end(self, name: str) -> None:
        if (machine := self.machines.get(name)) is not None:
            machine.gone()
            self.lines[name].close()

    # --- what the user does ---

    def begin(self) -> None:
        """The block has been entered: the user submits."""
        numbers = {wish.number for wish in self.scenario.wishes}
        if (program := self._program) is not None:
            for edit in self.scenario.edits:
                write = functools.partial(self._edit, program, edit)
                self.world.after(edit.at, self.world.awake(self.driver, write))
        for wish in self.scenario.wishes:
            if wish.after in numbers:
                self._followers.setdefault(wish.after, []).append(wish)
            else:
                self._submit_in(wish.at, wish)

    def look(self) -> None:
        """Have a status made, as who watches the pool does at any time."""
        runner, tally, now = self.dispatcher.runner, self.tally, self.world.now
        tasks = tally.status(now, runner.schedule.at_nodes(), runner.running()).tasks
        shown = {
            "seconds left": tally.left(now),
            "tasks a second": tally.rate(now),
            "tasks a second in all": tally.throughput,
            "share of the slots' time": tally.efficiency,
            "whether that says anything": tally.could_be_efficient,
            "seconds": tally.elapsed(now),
            "slots": self.provisioner.slots,
            **{f"tasks at a time of {limit}": runner.schedule.at_a_time(limit) for limit in self.scenario.limits},
        }
        self.world.broken += [f"it shows {number} {what}" for what, number in shown.items() if (number or 0.0) < 0.0]
        if min(tasks.done, tasks.failed, tasks.cancelled) < 0 or tasks.done + tasks.failed > self.tally.queued:
            self.world.broken.append(f"a status of more tasks than there are: {tasks}")

    def _edit(self, program: EditedProgram, edit: Edit) -> None:
        self.world.tell(f"the user edits module {edit.module}")
        program.write(edit.module, edit.size)

    def _submit_in(self, seconds: float, wish: Wish) -> None:
        self.world.after(seconds, self.world.awake(self.driver, functools.partial(self._submit, wish)))

    def _submit(self, wish: Wish) -> None:
        """Submit a task, to be cancelled when its user wants it no more."""
        if not self.driver.alive or self.is_withdrawn:
            return
        self.world.tell(f"submit {wish}")
        if wish.number % 7 == 0:
            self.look()
        arrays = [argument(size) for size in wish.arrays]
        if wish.mutates:
            arrays = [Array(bytearray(array.data)) for array in arrays]
        self.oracle.wishes[wish.number] = wish
        try:
            future = self._call(wish, [*arrays, *self._code_of(wish)], self._pinned(wish))
        except PoolNotActive:
            del self.oracle.wishes[wish.number]
            return
        self.oracle.submitted(wish, future)
        if (code := self.dispatcher.code) is not None and code.version is not None:
            self._versions.add(code.version)
        if wish.mutates:
            for array in arrays:
                array.data[:] = bytes(len(array.data))
        with contextlib.suppress(SystemExit):  # of the callback, if it is called here
            future.add_done_callback(lambda _: self._has_settled(wish))
        if wish.cancelled is not None:
            self.world.after(wish.cancelled, self.world.awake(self.driver, lambda: self._cancel(wish.number, future)))

    def _code_of(self, wish: Wish) -> list[Uses]:
        """What a task refers to; says what it may see of that."""
        program, code = self._program, self.dispatcher.code
        if wish.uses is None or program is None or code is None:
            return []
        name = program.need(wish.uses)
        group = None if wish.group is None else self._groups[wish.group]
        if group is not None and wish.group not in self._calls:  # as `ParallelCall.start_call` has it
            group.code = code.now(look=True)
            self._calls[wish.group] = program.state
        began = None if group is None or group.code is None else self._calls[wish.group]
        alone = group is None and not self.dispatcher.unfinished
        self.oracle.texts[wish.number] = program.seen(name, began, alone=alone)
        return [Uses(name)]

    def _pinned(self, wish: Wish) -> str | None:
        """The node that a task must run on; it may be gone."""
        if wish.node is None or not self._nodes:
            return None
        name, machine = list(self._nodes.items())[wish.node % len(self._nodes)]
        self.oracle.pinned[wish.number] = machine
        return name

    def _call(self, wish: Wish, arrays: list[Any], node: str | None) -> Any:
        options = TaskOptions(
            isolated=wish.isolated, timeout=wish.timeout, attempts=wish.attempts, large=100_000, node=node
        )
        if wish.group is not None:
            options = replace(options, group=self._groups[wish.group])
        if wish.end == "unpicklable":
            return self.dispatcher.submit(carry_out, wish.load, threading.Lock(), options=options)
        if wish.same is not None:
            return self.dispatcher.submit(Cached(wish.same, self.oracle.kept), wish.load, *arrays, options=options)
        if not wish.count:
            function = carry_out if wish.number % 3 else carry_out_as_well
            return self.dispatcher.submit(function, wish.load, *arrays, options=options)
        calls = [(carry_out, (wish.load, *arrays), {"item": item}) for item in items(wish)]
        batch = Batch(calls, 1, None, _CARRY_OUT, wish.group or 0)
        return self.dispatcher.call(batch, (), {}, replace(options, count=wish.count), wish.number * wish.count)

    def _has_settled(self, wish: Wish) -> None:
        """The user's callback of a future."""
        if wish.number % 5 == 0:
            self.look()
        for follower in self._followers.get(wish.number, ()):
            if follower.at:
                self._submit_in(follower.at, follower)
            else:
                self._submit(follower)
        if wish.callback == "raise":
            raise ValueError("simulated: an error in a callback")
        if wish.callback == "exit":
            raise SystemExit("simulated: the end in a callback")

    def _cancel(self, number: int, future: Any) -> None:
        self.world.tell(f"cancel {number}")
        self.oracle.cancelled.add(number)
        with contextlib.suppress(SystemExit):
            future.cancel()

    def withdraw(self) -> None:
        """Cancel what has not begun, and submit nothing any more, as `shutdown(cancel_futures=True)` does."""
        self.world.tell("the user withdraws what has not begun")
        self._cancelled_all()
        self.is_withdrawn = True
        self.driver.call_soon_threadsafe(self.dispatcher.withdraw_all)

    def leave(self, cancel: bool = False) -> None:
        """The block ends: as `RunningPool` does it."""
        self.world.tell("the user is interrupted" if cancel else "the block ends")
        if cancel:
            self._cancelled_all()
            for work in self._work:
                work.cancel()
            self.driver.call_soon_threadsafe(self.dispatcher.cancel_all)
        self.behind = max((line.behind for line in self.lines.values()), default=0.0)
        self.deafness += any(line.down_until > self.world.now for line in self.lines.values())
        self.is_leaving = True
        self.events.emit(PoolDraining())
        self.dispatcher.shut("the block has ended")
        self._work.append(self.world.run_task(self.driver, self._release()))

    def _cancelled_all(self) -> None:
        """From now on nobody wants any task, nor those that callbacks submit."""
        self.oracle.cancelled.update(wish.number for wish in self.scenario.wishes)

    async def _release(self) -> None:
        self.dispatcher.cancel_all()
        await self.provisioner.stop()
        self.dispatcher.runner.files.stop()
        self.events.emit(PoolClosed(self.world.now - self.world.began))

    def kill(self) -> None:
        """The driver's process is killed, and the kernel closes its connections."""
        self.world.tell("the driver is killed")
        self.oracle.is_over = True
        self.driver.die()
        self.world.unwatch(self.driver)
        for line in self.lines.values():
            for connection in list(line.connections):
                connection.close()

    @property
    def parts(self) -> list[object]:
        """Driver and agents, where something of a task may be."""
        agents = [machine.agent for machine in self.machines.values() if machine.process.alive]
        return [self.dispatcher, self.provisioner, *agents]

    @property
    def versions(self) -> list[CodeVersion]:
        """Those of the user's own code that calls have, or that errors keep which the user has.

        An error from pickling refers to the frames in which the task was submitted, such as that of a callback, and one
        from unpickling to those in which the answer was read.
        """
        ends = {wish.end for wish in self.scenario.wishes}
        kept = self._versions if ends & {"unpicklable", "riddle"} else ()
        return [*kept, *(group.code for group in self._groups if group.code is not None)]

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

    @property
    def billed(self) -> list[str]:
        """Rented machines that still cost money."""
        rented = [cloud for cloud in self.clouds if cloud.is_rented]
        return [name for cloud in rented for name, record in cloud.records.items() if record.billed]

    @property
    def results_left(self) -> list[str]:
        """Files in which results are that nobody has taken."""
        alive = [machine for machine in self.machines.values() if machine.process.alive]
        return [f"{name} of {machine.name}" for machine in alive for name in machine.results]

    def unplug(self) -> None:
        """End all machines; then the world is closed, and then this."""
        for name, machine in self.machines.items():
            machine.gone()
            self.lines[name].close()
            del SimulatedTransport.lines[id(self.world), name]

    def close(self) -> None:
        """Free what the simulation itself holds."""
        for users in (self._program, self.folder):
            if users is not None:
                users.close()
        if self._work_folder is not None:
            shutil.rmtree(self._work_folder, ignore_errors=True)
        with contextlib.suppress(SystemExit):  # of a user's callback
            self.dispatcher.close()
        if self.results is not None:
            self.results.close()
