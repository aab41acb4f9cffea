"""Nodes are provisioned, kept, replaced and terminated, whatever happens meanwhile; over agents in memory."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from skyward.core import registry
from skyward.core.errors import (
    HostUnreachable,
    NodeLost,
    PackagesFailed,
    ProvisioningError,
    WorkerCrashed,
)
from skyward.core.events import Events, Machines, NodeGone, Note
from skyward.core.image import Image
from skyward.core.interfaces import CommandOutput, Trait
from skyward.core.ioloop import IOThread
from skyward.core.machines.fleet import Fleet
from skyward.core.machines.fleet_events import Command, Event
from skyward.core.machines.plan import Plan
from skyward.core.machines.provision import Provisioner
from skyward.core.machines.reaper import dismiss
from skyward.core.nodes.bootstrap_scripts import BUILD, INSPECT, QUICK_START
from skyward.core.nodes.timing import Timing
from skyward.core.protocol.messages import Failed, Failure, Ready
from skyward.core.spec import Endpoint, Machine, MachineId, Nodes, Offer, Order, Resources
from skyward.core.tasks.dispatch import Dispatcher
from skyward.core.tasks.jobs import TaskOptions
from skyward.transport.memory import listen
from tests.core.folder_cloud import FolderCloud
from tests.core.memory_agent import QUICK, SETUP, MemoryAgent
from tests.lab.wait import eventually


class MemoryProvider:
    """Makes machines that are agents in memory, with faults on demand, and remembers what it made and ended."""

    name: ClassVar[str] = "memory"
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.DESTROYS})

    def __init__(self, stock: int = 100) -> None:
        self.stock = stock
        self.broken = False
        self.dead_on_arrival = 0
        self.sleepy = self.useless = False
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.made: list[MachineId] = []
        self.ended: list[MachineId] = []
        self.agents: dict[MachineId, MemoryAgent] = {}

    def offers(self, resources: Resources) -> Sequence[Offer]:
        return []

    def create(self, order: Order) -> Sequence[Machine]:
        self.asked.set()
        assert self.gate.wait(30)
        if self.broken and self.made:
            raise OSError("broken")
        count = min(order.count, self.stock)
        if not count:
            raise ProvisioningError("out of stock")
        self.stock -= count
        machines = []
        for _ in range(count):
            id = uuid.uuid4().hex
            self.made.append(id)
            agent = self.agents[id] = MemoryAgent()
            agent.sleepy, agent.refuses = self.sleepy, self.useless
            if self.dead_on_arrival:
                self.dead_on_arrival -= 1
            else:
                listen(id, "agent", agent.accept)
            machines.append(Machine(id, Endpoint("memory", id), "m", "agent", b"s"))
        return machines

    def machines(self, tag: str) -> Sequence[Machine]:
        return []

    def destroy(self, ids: Sequence[MachineId]) -> None:
        self.ended += ids
        if self.broken:
            raise OSError("broken")


class Fixture:
    """A provisioner in a loop of its own."""

    def __init__(self, *providers: MemoryProvider, nodes: Any = 2, timing: Timing = QUICK) -> None:
        self.io, self.events = IOThread("skyward-io-test"), Events()
        self.gone: list[NodeGone] = []
        self.events.subscribe(lambda event: self.gone.append(event) if isinstance(event, NodeGone) else None)
        self.dispatcher = Dispatcher(self.io, self.events, isolated=True, timeout=None, attempts=2)
        order = Order("tag", 1, Resources())
        plan = Plan(providers, Nodes.parse(nodes), order, Image(), SETUP, timing)
        self.provisioner = Provisioner(plan, self.dispatcher.runner, self.events)

    def start(self) -> Any:
        return self.io.start(self.provisioner.start())

    def close(self) -> None:
        async def stop() -> None:
            self.dispatcher.cancel_all()
            await self.provisioner.stop()

        self.io.start(stop()).result(30)
        self.io.stop()
        self.dispatcher.close()


def test_all_that_is_made_is_ended() -> None:
    """The ordinary way."""
    provider = MemoryProvider()
    fixture = Fixture(provider, nodes=3)
    fixture.start().result(30)
    assert fixture.provisioner.nodes == ["node-1", "node-2", "node-3"]
    assert fixture.provisioner.slots == 6
    fixture.close()
    assert len(provider.made) == 3
    assert sorted(provider.ended) == sorted(provider.made)


def test_other_threads_may_count_slots_while_nodes_come_and_go() -> None:
    it = Fixture(MemoryProvider("a"), nodes=1)
    try:
        lives = it.provisioner._lives

        class Coming:
            """A node while another one comes, in the middle of counting."""

            name, is_ready = "node-1", True

            @property
            def slots(self) -> int:
                lives[0, MachineId(f"m-{len(lives)}")] = coming
                return 1

        coming: Any = Coming()
        lives[0, MachineId("m-0")] = coming
        assert it.provisioner.slots == 1
        assert it.provisioner.slots == 2
        lives.clear()
    finally:
        it.close()


def test_an_interrupt_while_machines_are_made_loses_none() -> None:
    """What `create` returns after the start was given up is terminated."""
    provider = MemoryProvider()
    provider.gate.clear()
    fixture = Fixture(provider, nodes=3)
    starting = fixture.start()
    assert provider.asked.wait(30)
    starting.cancel()
    provider.gate.set()
    fixture.close()
    assert len(provider.made) == 3
    assert sorted(provider.ended) == sorted(provider.made)


def test_the_next_provider_fills_the_rest() -> None:
    """Several providers are asked in order."""
    first, second = MemoryProvider(stock=1), MemoryProvider()
    fixture = Fixture(first, second, nodes=3)
    fixture.start().result(30)
    assert (len(first.made), len(second.made)) == (1, 2)
    fixture.close()
    assert len(first.ended + second.ended) == 3


def test_too_few_machines_is_an_error_at_once_and_the_minimum_is_enough() -> None:
    """nodes=3 of 2 fails with the provider's words; nodes=(2, 3) begins with 2."""
    fixture = Fixture(MemoryProvider(stock=2), nodes=3)
    with pytest.raises(ProvisioningError, match="out of stock"):
        fixture.start().result(30)
    fixture.close()
    fixture = Fixture(MemoryProvider(stock=2), nodes=(2, 3))
    fixture.start().result(30)
    assert len(fixture.provisioner.nodes) == 2
    fixture.close()


def test_a_machine_that_never_answers_fails_the_start() -> None:
    """And is terminated with the others."""
    provider = MemoryProvider()
    provider.dead_on_arrival = 1
    fixture = Fixture(provider, nodes=2)
    with pytest.raises(ProvisioningError):
        fixture.start().result(30)
    fixture.close()
    assert sorted(provider.ended) == sorted(provider.made)


def test_slots_that_never_start_fail_the_start() -> None:
    """The agent lives and answers, but its slots hang in an import: nobody waits for ever."""
    provider = MemoryProvider()
    provider.sleepy = True
    fixture = Fixture(provider, nodes=1, timing=replace(QUICK, ready=0.3))
    with pytest.raises(ProvisioningError, match=r"its workers did not start within 0\.3 s"):
        fixture.start().result(30)
    fixture.close()
    assert provider.ended == provider.made


def test_a_node_that_is_ready_in_time_stays() -> None:
    fixture = Fixture(MemoryProvider(), nodes=1, timing=replace(QUICK, ready=0.1))
    fixture.start().result(30)
    time.sleep(0.3)  # past the limit
    assert fixture.provisioner.nodes == ["node-1"]
    fixture.close()


def test_a_ledger_that_cant_be_written_does_not_hide_the_blocks_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is terminated by then; that is reported, and the reaper and the threads end."""
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    (tmp_path / "cloud").mkdir()
    cloud = FolderCloud(str(tmp_path / "cloud"))
    fixture = Fixture(cloud, nodes=1)
    notes: list[Note] = []
    fixture.events.subscribe(lambda event: notes.append(event) if isinstance(event, Note) else None)
    starting = fixture.start()
    eventually(cloud.left)
    buyer = fixture.provisioner._buyer
    assert buyer is not None
    db = sqlite3.connect(buyer.ledger.path)
    db.execute("DROP TABLE pools")
    db.close()
    starting.cancel()
    fixture.close()
    assert cloud.left() == []
    assert "all machines are terminated, but" in notes[-1].text
    assert notes[-1].warning
    assert buyer._reaper.returncode == 0


def test_what_falls_due_while_the_fleet_thinks_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine the loop's thread may have to wait for longer than it is to the next look."""
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    (tmp_path / "cloud").mkdir()
    cloud = FolderCloud(str(tmp_path / "cloud"))

    def think(fleet: Fleet, event: Event, now: float) -> list[Command]:
        commands = handle(fleet, event, now)
        time.sleep(2 * cloud.poll)
        return commands

    handle = Fleet.handle
    monkeypatch.setattr(Fleet, "handle", think)
    monkeypatch.setattr(
        FolderCloud, "listing_delay", 0.0
    )  # else what falls due at its end makes up for what was missed
    fixture = Fixture(cloud, nodes=1)
    starting = fixture.start()
    eventually(cloud.left)
    starting.cancel()
    fixture.close()
    assert cloud.left() == []


def test_a_lost_node_is_replaced_and_named() -> None:
    """Its machine is terminated, another takes its place, and listeners hear why."""
    provider = MemoryProvider()
    fixture = Fixture(provider, nodes=2)
    fixture.start().result(30)
    agent = provider.agents[provider.made[0]]

    async def die() -> None:
        from skyward.transport.memory import _listeners

        _listeners.pop((provider.made[0], "agent"))
        agent.cut()

    fixture.io.start(die()).result(30)
    eventually(lambda: len(fixture.provisioner.nodes) == 2 and "node-3" in fixture.provisioner.nodes)
    (gone,) = fixture.gone
    assert gone.node in ("node-1", "node-2")  # they are named as they come up
    assert gone.reason
    eventually(lambda: provider.ended == [provider.made[0]])
    fixture.close()
    assert sorted(provider.ended) == sorted(provider.made)


def test_when_the_last_node_is_lost_for_good_tasks_fail() -> None:
    """Nothing waits for ever."""
    provider = MemoryProvider(stock=1)
    fixture = Fixture(provider, nodes=1)
    fixture.start().result(30)
    agent = provider.agents[provider.made[0]]
    agent.holding = True
    future = fixture.dispatcher.submit(abs, -1)
    eventually(lambda: agent.held)

    async def die() -> None:
        from skyward.transport.memory import _listeners

        _listeners.pop((provider.made[0], "agent"))
        agent.cut()

    fixture.io.start(die()).result(30)
    with pytest.raises(NodeLost, match="no node is left"):
        future.result(30)
    fixture.close()


@pytest.mark.slow
def test_a_node_that_begins_no_task_is_removed_reported_and_replaced() -> None:
    """And not for ever: each task has its error in the end."""
    provider = MemoryProvider()
    provider.useless = True
    fixture = Fixture(provider, nodes=1)
    fixture.start().result(30)
    errors = [""]
    while "no node is left" not in errors[-1]:
        with pytest.raises((WorkerCrashed, NodeLost)) as caught:
            fixture.dispatcher.submit(abs, -1).result(30)
        errors.append(str(caught.value))
    assert len(provider.made) == len(fixture.gone) == 3
    assert all("taken out" in str(gone.reason) and "no room" in str(gone.reason) for gone in fixture.gone)
    assert "no node can start abs (task 1); node-1 reports: no room" in errors[1]
    assert "no node is left" in errors[-1]
    assert "no room" in errors[-1]
    fixture.close()


@pytest.mark.slow
def test_what_a_node_had_not_begun_when_it_could_begin_no_more_runs_on_the_next() -> None:
    """Though it may be started but once, and there is no other node at the moment."""
    provider = MemoryProvider()
    fixture = Fixture(provider, nodes=1)
    fixture.start().result(30)
    agent = provider.agents[provider.made[0]]
    agent.holding = True
    future = fixture.dispatcher.submit(abs, -1, options=TaskOptions(attempts=1))
    eventually(lambda: agent.held)

    async def give_up() -> None:
        agent.say(Ready(0, "the fork server ended"))
        agent.say(Failed(1, 0.0, Failure.REFUSED.value, "the fork server ended"))
        agent.flush()

    fixture.io.start(give_up()).result(30)
    assert future.result(20) == 1
    assert [(gone.node, gone.reason) for gone in fixture.gone] == [("node-1", "the fork server ended")]
    fixture.close()


def _lose(fixture: Fixture, provider: MemoryProvider) -> None:
    """The provider's first machine is gone."""

    async def die() -> None:
        from skyward.transport.memory import _listeners

        _listeners.pop((provider.made[0], "agent"))
        provider.agents[provider.made[0]].cut()

    fixture.io.start(die()).result(30)


@pytest.mark.slow
def test_a_provider_that_raises_anything_does_not_end_the_pool() -> None:
    """An error outside of its map, in create and destroy: what waits fails, and start does not hang."""
    provider = MemoryProvider()
    fixture = Fixture(provider, nodes=1)
    fixture.start().result(30)
    provider.broken = True
    agent = provider.agents[provider.made[0]]
    agent.holding = True
    future = fixture.dispatcher.submit(abs, -1)
    eventually(lambda: agent.held)
    _lose(fixture, provider)
    with pytest.raises(NodeLost, match="no node is left"):
        future.result(30)
    fixture.close()
    provider = MemoryProvider()
    provider.broken, provider.dead_on_arrival = True, 1
    fixture = Fixture(provider, nodes=1)
    with pytest.raises(ProvisioningError):
        fixture.start().result(30)
    fixture.close()


def test_a_provider_that_exits_does_not_take_the_loop_along() -> None:
    class Exits(MemoryProvider):
        def create(self, order: Order) -> Any:
            sys.exit(3)

    fixture = Fixture(Exits(), nodes=1)
    with pytest.raises(ProvisioningError, match="memory: SystemExit: 3"):
        fixture.start().result(30)
    fixture.close()


def test_an_unexpected_error_is_reported_and_nobody_waits_for_nodes() -> None:
    """As if the fleet itself failed: here its events are of a kind that nobody knows."""
    provider = MemoryProvider()
    provider.gate.clear()
    fixture = Fixture(provider, nodes=1)
    notes: list[str] = []
    fixture.events.subscribe(lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    starting = fixture.start()
    assert provider.asked.wait(30)

    async def fail() -> None:
        raise KeyError("upkeep")

    fixture.io.post(lambda: fixture.provisioner._errand(fail()))
    with pytest.raises(ProvisioningError, match="unexpected error while managing the nodes: KeyError: 'upkeep'"):
        starting.result(30)
    assert any("KeyError: 'upkeep'" in note for note in notes)
    provider.gate.set()
    fixture.close()


def test_nothing_is_ordered_once_the_pool_is_closed() -> None:
    """A lost node's replacement that one provider refuses is not asked of the next one then."""
    first, second = MemoryProvider(stock=1), MemoryProvider()
    fixture = Fixture(first, second, nodes=1)
    fixture.start().result(30)
    first.gate.clear()
    first.asked.clear()
    _lose(fixture, first)
    assert first.asked.wait(30)
    threading.Timer(0.2, first.gate.set).start()
    fixture.close()
    assert second.made == []


@pytest.mark.slow
def test_closing_does_not_wait_for_the_next_try() -> None:
    """A node that is to be asked for again in some seconds is not waited for."""
    provider = MemoryProvider()
    fixture = Fixture(provider, nodes=2)
    fixture.start().result(30)
    provider.dead_on_arrival = 9
    _lose(fixture, provider)
    eventually(lambda: len(provider.ended) == 3)
    timer = fixture.provisioner._timer
    assert timer is not None
    began, due = time.monotonic(), timer.when()
    assert due - began < 10  # four seconds, as two machines have not come up
    fixture.close()
    assert time.monotonic() < due
    assert sorted(provider.ended) == sorted(provider.made)


def test_machines_are_terminated_where_no_thread_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the interpreter ends, from Python 3.12 on."""
    provider = MemoryProvider()
    fixture = Fixture(provider, nodes=3)
    fixture.start().result(30)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    fixture.close()
    assert set(provider.ended) == set(provider.made)


def test_asyncio_is_not_needed_to_be_running_here() -> None:
    """A pool works from within somebody's event loop too (a notebook), since it has its own."""

    async def main() -> int:
        fixture = Fixture(MemoryProvider(), nodes=1)
        fixture.start().result(30)
        try:
            return await asyncio.wrap_future(fixture.dispatcher.submit(abs, -5))
        finally:
            fixture.close()

    assert asyncio.run(main()) == 5


# --- machines that are bought, and can be reached but not prepared ---


@dataclass(frozen=True)
class Ward(FolderCloud):
    """Machines whose packages can't be installed; what is said then is in `says`. Without that nobody answers there."""

    says: str = ""

    def _machine(self, path: Path) -> Machine:
        return replace(super()._machine(path), endpoint=Endpoint("ward", path.name, user=self.says))


class WardTransport:
    """Reaches them; its connections are their own links and shells."""

    name: ClassVar[str] = "ward"
    striped: ClassVar[bool] = False

    def __init__(self, says: str = "") -> None:
        self._says = says

    async def connect(self, endpoint: Endpoint, timeout: float) -> WardTransport:
        if not endpoint.user:
            raise HostUnreachable("nobody answers")
        return WardTransport(endpoint.user)

    @property
    def shell(self) -> WardTransport:
        return self

    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> CommandOutput:
        if command.endswith((INSPECT, QUICK_START)):
            return CommandOutput(0, "root /r\nenv /e\nuv /bin/uv\npython /bin/python3\nend\n", "")
        return (
            CommandOutput(1, f"@installing\n{self._says}\n", "")
            if command.endswith(BUILD)
            else CommandOutput(0, "", "")
        )

    async def close(self) -> None:
        pass


@pytest.fixture
def ward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ward]:
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    info = tmp_path / "packages" / "skyward_ward-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: skyward-ward\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[skyward.transports]\nward = {__name__}:WardTransport\n")
    monkeypatch.syspath_prepend(str(info.parent))
    registry.load.cache_clear()
    registry._theirs.cache_clear()
    (tmp_path / "cloud").mkdir()
    yield Ward(str(tmp_path / "cloud"))
    registry.load.cache_clear()
    registry._theirs.cache_clear()


def _hear(fixture: Fixture, kind: type[Any]) -> list[Any]:
    heard: list[Any] = []
    fixture.events.subscribe(lambda event: heard.append(event) if isinstance(event, kind) else None)
    return heard


def test_packages_that_cant_be_installed_buy_one_machine(ward: Ward) -> None:
    """No other would do better, and the pool has not even started."""
    fixture = Fixture(replace(ward, says="No solution: nosuch"), nodes=1)
    notes = _hear(fixture, Note)
    with pytest.raises(PackagesFailed, match="No solution: nosuch"):
        fixture.start().result(20)
    fixture.close()
    texts = [note.text for note in notes]
    assert [text for text in texts if "ordering" in text] == ["folder: ordering 1 x small spot in drawer, $0.12/h"]
    (told,) = (note for note in notes if note.text.startswith("node-1: "))
    assert told.warning
    assert told.text.endswith("are their names right, and does the host reach the index?")
    assert ward.left() == []


def test_a_machine_that_cant_be_prepared_is_reported_before_another_is_bought(ward: Ward) -> None:
    fixture = Fixture(replace(ward, says="No space left on device"), nodes=1)
    notes = _hear(fixture, Note)
    starting = fixture.start()
    told = eventually(lambda: next((note for note in notes if note.text.startswith("node-1: ")), None), 20)
    starting.cancel()
    fixture.close()
    assert told.warning
    assert told.text.endswith("free some space; trying another machine")


def test_what_is_bought_and_terminated_is_reported(ward: Ward) -> None:
    """One line for orders that are alike; and how many machines are no nodes, as that changes."""
    fixture = Fixture(ward, nodes=3)
    notes, machines = _hear(fixture, Note), _hear(fixture, Machines)
    starting = fixture.start()
    eventually(lambda: len(fixture.provisioner._lives) == 3, 20)
    starting.cancel()
    fixture.close()
    assert [note.text for note in notes][:2] == [
        "folder: ordering 3 x small spot in drawer, $0.12/h, $0.36/h in total",
        "terminating 3 machine(s) of tag",
    ]
    assert machines[0] == Machines(ordered=3)
    assert Machines(ending=3) in machines
    assert machines[-1] == Machines()


@pytest.mark.slow
def test_credentials_that_have_ended_end_the_wait_and_what_is_left_is_reported(ward: Ward) -> None:
    fixture = Fixture(ward, nodes=2)
    notes = _hear(fixture, Note)
    starting = fixture.start()
    eventually(lambda: len(fixture.provisioner._lives) == 2, 20)
    (Path(ward.folder) / "locked").touch()
    starting.cancel()
    fixture.close()
    buyer = fixture.provisioner._buyer
    assert buyer is not None
    assert buyer._reaper.poll() is None, "it is for what is left"
    dismiss(buyer._reaper)
    [told] = [note for note in notes if note.text.startswith("could not")]
    assert told.warning
    assert told.text == (
        "could not terminate m-tag-1 at folder, m-tag-2 at folder; it may still cost about $0.24/h. "
        "folder refuses the credentials: the key was refused. "
        "Run this with credentials that may terminate it: skyward down tag. "
        "A background process also keeps trying once this program has ended"
    )
    assert [entry.ended for entry in buyer.ledger.machines("tag")] == [None, None]
