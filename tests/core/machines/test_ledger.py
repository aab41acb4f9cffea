"""What was bought is on the disk before it is bought, for the eyes of its user only, and survives what happens."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skyward.core.billing import Billing
from skyward.core.errors import ConfigError, PoolNotActive
from skyward.core.machines.ledger import Ledger, _asked
from skyward.core.machines.ssh_keys import make_key
from skyward.core.spec import Endpoint, KeyPair, Machine, Offer, Order, Resources

KEY = KeyPair("private", "ssh-ed25519 AAAA sky-1")
HOST = KeyPair("host private", "ssh-ed25519 BBBB host")
OFFER = Offer("c5", vcpus=4, region="here", spot=True, price=0.72)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state")


def an_order(name: str = "sky-1-1", tag: str = "sky-1", offer: Offer | None = OFFER) -> Order:
    return Order(tag, 1, Resources(), name=name, offer=offer, host_key=HOST, user_key=KEY.public)


def a_machine(id: str = "i-1", order: str = "sky-1-1", tag: str = "sky-1") -> Machine:
    return Machine(id, Endpoint("ssh", "192.0.2.7", 2222, "root"), id, order=order, tag=tag)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- whose eyes ---


def test_only_its_user_can_read_it(ledger: Ledger) -> None:
    before = os.umask(0)
    try:
        fresh = Ledger(ledger.folder.parent / "other")
        key = fresh.open_pool("sky-1", [], KEY)
    finally:
        os.umask(before)
    assert {path.name: mode(path) for path in fresh.folder.rglob("*")} == {
        "ledger.sqlite": 0o600,
        "keys": 0o700,
        "sky-1": 0o600,
    }
    assert mode(fresh.folder) == 0o700
    assert key.read_text() == "private"


def test_a_file_that_others_could_read_is_closed_to_them(ledger: Ledger) -> None:
    ledger.path.chmod(0o644)
    Ledger(ledger.folder)
    assert mode(ledger.path) == 0o600


def test_secrets_of_machines_are_not_in_it(ledger: Ledger) -> None:
    """Private keys of hosts and of the user stay out of the database."""
    ledger.open_pool("sky-1", [("p", {})], KEY)
    ledger.intend("p", an_order())
    content = ledger.path.read_bytes()
    assert b"ssh-ed25519 BBBB host" in content
    assert b"private" not in content


def test_the_environment_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "elsewhere"))
    assert Ledger().path == tmp_path / "elsewhere" / "ledger.sqlite"


def test_a_place_that_cant_be_written_is_an_error_before_anything_is_bought(tmp_path: Path) -> None:
    """A file in the way, a folder in the place of the file, and a file that is something else."""
    (tmp_path / "file").touch()
    (tmp_path / "a" / "ledger.sqlite").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "ledger.sqlite").write_text("no database at all, " * 50)
    for folder in (tmp_path / "file" / "state", tmp_path / "a", tmp_path / "b"):
        words = r"(?s)can't record purchases .*ledger\.sqlite.*nothing is bought.*SKYWARD_STATE"
        with pytest.raises(ConfigError, match=words):
            Ledger(folder)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="SKYWARD_STATE"):
        Ledger(tmp_path)


# --- a pool's life ---


def test_a_pool_from_its_opening_to_its_end(ledger: Ledger) -> None:
    path = ledger.open_pool("sky-1", [("aa", {"region": "x"}), ("bb", {})], KEY)
    (pool,) = ledger.pools()
    assert (pool.tag, pool.providers, pool.alive) == ("sky-1", [("aa", {"region": "x"}), ("bb", {})], True)
    assert pool.pid == os.getpid()
    ledger.intend("aa", an_order())
    ledger.made("aa", [a_machine()])
    ledger.reached("aa", a_machine(), "node-1")
    (entry,) = ledger.machines("sky-1")
    assert (entry.machine, entry.region, entry.spot, entry.price, entry.node) == ("c5", "here", True, 0.72, "node-1")
    assert entry.endpoint == Endpoint("ssh", "192.0.2.7", 2222, "root")
    assert entry.host_key == HOST.public
    assert entry.ended is None
    known_hosts = ledger.known_hosts_path("sky-1", "i/1")
    known_hosts.touch()
    ledger.close_pool("sky-1")
    assert ledger.pools() == []
    (closed,) = ledger.pools(all=True)
    assert closed.closed is not None
    assert closed.alive is False
    assert ledger.machines()[0].ended is not None
    assert not path.exists()
    assert not known_hosts.exists()


def test_closing_a_pool_leaves_the_others(ledger: Ledger) -> None:
    """Also one whose name begins the same."""
    for tag in ("sky-1", "sky-1-2"):
        ledger.open_pool(tag, [], KEY)
        ledger.intend("p", an_order(f"{tag}-o", tag))
        ledger.made("p", [a_machine(tag, f"{tag}-o", tag)])
        ledger.known_hosts_path(tag, "i").touch()
    ledger.close_pool("sky-1")
    assert [pool.tag for pool in ledger.pools()] == ["sky-1-2"]
    assert [entry.id for entry in ledger.machines() if entry.ended is None] == ["sky-1-2"]
    assert ledger.key_path("sky-1-2").exists()
    assert ledger.known_hosts_path("sky-1-2", "i").exists()


def test_a_pool_is_not_closed_while_a_machine_of_it_was_not_seen_to_end(ledger: Ledger) -> None:
    path = ledger.open_pool("sky-1", [], KEY)
    ledger.made("p", [a_machine("i-1"), a_machine("i-2")])
    ledger.ended("p", ["i-1"])
    assert ledger.close_pool("sky-1", seen=True) == ["i-2 at p"]
    assert [pool.tag for pool in ledger.pools()] == ["sky-1"]
    assert path.exists()
    ledger.ended("p", ["i-2"])
    assert ledger.close_pool("sky-1", seen=True) == []
    assert ledger.pools() == []


def test_a_pool_that_cant_be_written_down_leaves_no_key(ledger: Ledger) -> None:
    """Nothing is bought for it, and nobody would remove the key."""
    db = sqlite3.connect(ledger.path)
    db.execute("DROP TABLE pools")
    db.close()
    with pytest.raises(ConfigError, match=r"(?s)can't record purchases .*no such table.*nothing is bought"):
        ledger.open_pool("sky-1", [], KEY)
    assert not ledger.key_path("sky-1").exists()


def test_it_stays_where_it_is_when_the_program_goes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKYWARD_STATE", "near")
    ledger = Ledger()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert ledger.open_pool("sky-1", [], KEY).is_relative_to(tmp_path / "near")


def test_two_pools_cant_have_one_name(ledger: Ledger) -> None:
    ledger.open_pool("sky-1", [], KEY)
    with pytest.raises(FileExistsError):
        ledger.open_pool("sky-1", [], make_key("other"))


def test_a_machine_whose_reply_was_lost_is_written_down_when_it_is_found(ledger: Ledger) -> None:
    """It costs since it was ordered."""
    ledger.open_pool("sky-1", [], KEY)
    ledger.intend("p", an_order())
    ordered = ledger.last_order("sky-1")
    ledger.reached("p", a_machine(), "node-1")
    (entry,) = ledger.machines()
    assert (entry.node, entry.price, entry.made) == ("node-1", 0.72, ordered)


def test_what_is_reported_twice_is_written_once(ledger: Ledger) -> None:
    ledger.open_pool("sky-1", [], KEY)
    ledger.intend("p", an_order())
    ledger.made("p", [a_machine()])
    ledger.made("p", [a_machine(), a_machine("i-2")])
    ledger.ended("p", ["i-1"])
    first = ledger.machines()[0].ended
    ledger.ended("p", ["i-1", "no such machine"])
    assert [entry.id for entry in ledger.machines()] == ["i-1", "i-2"]
    assert ledger.machines()[0].ended == first


def test_the_last_order_that_may_have_made_something(ledger: Ledger) -> None:
    ledger.open_pool("sky-1", [], KEY)
    assert ledger.last_order("sky-1") is None
    before = time.time()
    ledger.intend("p", an_order("sky-1-1"))
    ledger.intend("p", an_order("sky-1-2"))
    first = ledger.last_order("sky-1")
    ledger.refuse("sky-1-2")
    second = ledger.last_order("sky-1")
    assert first is not None
    assert second is not None
    assert before <= second <= first <= time.time()


def test_a_stopped_pool_buys_nothing_more(ledger: Ledger) -> None:
    """A driver that lives, and whose nodes were ended by somebody else, does not replace them."""
    ledger.open_pool("sky-1", [], KEY)
    ledger.open_pool("sky-2", [], KEY)
    ledger.intend("p", an_order("sky-1-1"))
    ledger.stop_pool("sky-1")
    ledger.stop_pool("sky-1")
    last = ledger.last_order("sky-1")
    with pytest.raises(PoolNotActive, match="sky-1 was shut down by `skyward down`"):
        ledger.intend("p", an_order("sky-1-2"))
    assert ledger.last_order("sky-1") == last, "what was refused is not written"
    ledger.intend("p", an_order("sky-2-1", "sky-2"))


# --- cost ---


@pytest.mark.parametrize(
    ("price", "ended", "cost"),
    [(0.72, None, 0.36), (0.72, 900.0, 0.18), (0.0, None, 0.0), (None, None, None), (0.72, -5.0, 0.0)],
)
def test_cost(ledger: Ledger, price: float | None, ended: float | None, cost: float | None) -> None:
    """The price per hour times the hours from its order to its end, or until now."""
    ledger.open_pool("sky-1", [], KEY)
    ledger.intend("p", an_order(offer=replace(OFFER, price=price)))
    ledger.made("p", [a_machine()])
    (entry,) = ledger.machines()
    entry = replace(entry, ended=None if ended is None else entry.made + ended)
    found = entry.cost(entry.made + 1800)
    assert found is None if cost is None else found == pytest.approx(cost)


def test_what_is_billed_at_least_counts_as_well(ledger: Ledger) -> None:
    ledger.open_pool("sky-1", [], KEY)
    ledger.intend("p", an_order(offer=replace(OFFER, billing=Billing(minimum=60.0, unit=3600.0, minimum_cost=0.01))))
    ledger.made("p", [a_machine()])
    (entry,) = ledger.machines()
    assert entry.billing == Billing(60.0, 3600.0, 0.01)
    assert (entry.cost(entry.made + 5), entry.cost(entry.made + 3605)) == (0.72, 1.44)


def test_a_machine_of_an_unknown_order_costs_nobody_knows_what(ledger: Ledger) -> None:
    ledger.made("p", [a_machine(order="of somebody else")])
    (entry,) = ledger.machines()
    assert (entry.cost(time.time()), entry.machine, entry.host_key) == (None, "", "")


# --- several processes, and death ---


def run(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


WRITER = """
import sys
from pathlib import Path
from skyward.core.machines.ledger import Ledger, _asked
from skyward.core.spec import KeyPair, Machine, Order, Resources
folder, number = Path(sys.argv[1]), sys.argv[2]
tag = f"sky-{number}"
ledger = Ledger(folder)
ledger.open_pool(tag, [("p", {})], KeyPair("private", "public"))
for n in range(10):
    ledger.intend("p", Order(tag, 1, Resources(), name=f"{tag}-{n}"))
    ledger.made("p", [Machine(f"i-{number}-{n}", None, "m", order=f"{tag}-{n}", tag=tag)])
    ledger.pools()
"""


@pytest.mark.slow
def test_many_processes_share_it(tmp_path: Path) -> None:
    """They make it at the same time, and none loses what it wrote."""
    writers = [run(WRITER, str(tmp_path / "state"), str(n)) for n in range(6)]
    assert [writer.communicate()[1] for writer in writers] == [""] * 6
    ledger = Ledger(tmp_path / "state")
    assert len(ledger.pools()) == 6
    assert len(ledger.machines()) == 60
    assert {pool.alive for pool in ledger.pools()} == {False}


DYING = """
import os, signal, sys
from pathlib import Path
from skyward.core.machines.ledger import Ledger, _asked
from skyward.core.spec import KeyPair, Offer, Order, Resources
ledger = Ledger(Path(sys.argv[1]))
ledger.open_pool("sky-1", [("p", {})], KeyPair("private", "public"))
ledger.intend("p", Order("sky-1", 1, Resources(), name="sky-1-1", offer=Offer("c5", price=1.0)))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_intent_is_there_when_the_driver_dies_right_after_it(tmp_path: Path) -> None:
    """Whoever looks then knows of the pool, of the order, and that the driver is dead, also before it is waited for."""
    writer = run(DYING, str(tmp_path))
    assert writer.stdout is not None
    assert writer.stdout.read() == ""  # the end of its output: it is dead, and a zombie as yet
    ledger = Ledger(tmp_path)
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)
    assert [pool.alive for pool in ledger.pools()] == [False]
    writer.communicate()
    assert [pool.alive for pool in ledger.pools()] == [False]
    assert ledger.last_order("sky-1") is not None


def test_the_intent_is_on_the_disk_before_intend_returns(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is told to wait for the disk, the folder too."""
    said: list[str] = []
    connect = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        db = connect(*args, **options)
        db.set_trace_callback(said.append)
        return db

    monkeypatch.setattr(sqlite3, "connect", traced)
    ledger.intend("p", an_order())
    (extra,) = [index for index, text in enumerate(said) if text == "PRAGMA synchronous = EXTRA"]
    (insert,) = [index for index, text in enumerate(said) if text.startswith("INSERT INTO orders")]
    assert extra < insert
    assert said[-1] == "COMMIT"


def test_a_driver_on_another_machine_is_not_called_dead(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several machines share the folder, nobody knows from here."""
    ledger.open_pool("sky-1", [], KEY)
    here = os.uname()
    elsewhere = os.uname_result([here.sysname, "another", here.release, here.version, here.machine])
    monkeypatch.setattr(os, "uname", lambda: elsewhere)
    assert [pool.alive for pool in ledger.pools()] == [None]


def test_a_pid_that_another_process_has_now_is_no_driver(ledger: Ledger) -> None:
    ledger.open_pool("sky-1", [], KEY)
    db = sqlite3.connect(ledger.path)
    with db:
        db.execute("UPDATE pools SET pid = ?", (1,))
    db.close()
    assert [pool.alive for pool in ledger.pools()] == [False]


def test_keys_of_dead_drivers_are_removed_unless_something_was_bought(ledger: Ledger) -> None:
    paths = {tag: ledger.open_pool(tag, [], KEY) for tag in ("bought", "unused", "closed", "alive", "elsewhere")}
    ledger.intend("p", an_order("bought-1", "bought"))
    known_hosts = ledger.known_hosts_path("unused", "i-1")
    known_hosts.touch()
    db = sqlite3.connect(ledger.path)
    with db:
        db.execute("UPDATE pools SET pid = 1 WHERE tag IN ('bought', 'unused')")  # some other process
        db.execute("UPDATE pools SET closed = 1 WHERE tag = 'closed'")  # and then the driver died
        db.execute("UPDATE pools SET pid_started = 'another/1' WHERE tag = 'elsewhere'")
    db.close()
    unknown, young = ledger.folder / "keys" / "unknown", ledger.folder / "keys" / "young"
    for path in (unknown, young):
        path.write_text("a pool that is not written down")
    os.utime(unknown, (time.time() - 7200,) * 2)
    ledger.open_pool("next", [], KEY)
    left = {path.name for path in (ledger.folder / "keys").iterdir()}
    assert left == {"bought", "alive", "elsewhere", "young", "next"}
    assert paths["bought"].read_text() == KEY.private
    assert {pool.tag for pool in ledger.pools()} == {"bought", "alive", "elsewhere", "next"}


@pytest.mark.slow
def test_of_a_stop_and_an_order_at_the_same_time_one_sees_the_other(ledger: Ledger) -> None:
    """The order is refused, or whoever stopped the pool finds it right after."""
    outcomes = set()
    for n in range(30):
        tag = f"sky-{n}"
        refused: list[str] = []

        def buy(tag: str = tag, refused: list[str] = refused) -> None:
            try:
                ledger.intend("p", an_order(f"{tag}-1", tag))
            except PoolNotActive:
                refused.append(tag)

        buyer = threading.Thread(target=buy)
        buyer.start()
        ledger.stop_pool(tag)
        seen = ledger.last_order(tag)
        buyer.join()
        assert bool(refused) is (seen is None)
        outcomes.add(bool(refused))
    assert outcomes


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps")
def test_without_proc_the_system_is_asked_when_a_process_began() -> None:
    """The same answer each time, and a state for one that has ended and was not waited for."""
    state, began = _asked(os.getpid())
    assert state
    assert _asked(os.getpid())[1] == began
    assert re.fullmatch(r"\w+ +\w+ +\d+ [\d:]+ \d{4}", began)
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert _asked(child.pid)[0].startswith("Z")
    child.wait()
    with pytest.raises(ValueError, match="unpack"):
        _asked(child.pid)
