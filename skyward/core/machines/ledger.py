"""Records what we buy, before it is bought, in an SQLite file that only its user can read.

Whoever cleans up after a driver that died (the reaper, ``skyward down``) finds here which providers to ask, with which
settings, and for which pool. It contains no secrets. The private key of each open pool is a file next to it, so that
``skyward ssh`` can log in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from skyward.core.billing import BY_THE_SECOND, Billing
from skyward.core.errors import ConfigError, PoolNotActive
from skyward.core.spec import Endpoint, KeyPair, Machine, MachineId, Order

__all__ = ["Entry", "Ledger", "PoolEntry"]

_YOUNG = 3600.0  # seconds for which a key may exist before its pool is recorded

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pools (
    tag TEXT PRIMARY KEY, pid INTEGER, pid_started TEXT, opened REAL, closed REAL);
CREATE TABLE IF NOT EXISTS providers (
    tag TEXT, position INTEGER, name TEXT, settings TEXT, PRIMARY KEY (tag, position));
CREATE TABLE IF NOT EXISTS orders (
    name TEXT PRIMARY KEY, tag TEXT, provider TEXT, count INTEGER, machine TEXT, region TEXT, spot INTEGER,
    price REAL, host_key TEXT, intended REAL, refused REAL);
CREATE TABLE IF NOT EXISTS bills (name TEXT PRIMARY KEY, minimum REAL, unit REAL, minimum_cost REAL);
CREATE TABLE IF NOT EXISTS machines (
    provider TEXT, id TEXT, ordered TEXT, tag TEXT, made REAL, ended REAL, host TEXT, port INTEGER, user TEXT,
    node TEXT, PRIMARY KEY (provider, id));
CREATE TABLE IF NOT EXISTS stopped (tag TEXT PRIMARY KEY, at REAL);
"""


@dataclass(frozen=True, slots=True)
class PoolEntry:
    """A pool that was opened. Times are seconds since the epoch.

    Attributes
    ----------
    providers
        (name, settings) of each.
    pid
        Its driver's.
    alive
        Whether its driver is still running; None where it runs, or ran, on another machine that shares this folder.
    """

    tag: str
    providers: Sequence[tuple[str, dict[str, object]]]
    opened: float
    closed: float | None
    pid: int
    alive: bool | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A machine that was bought. Times are seconds since the epoch; `price` is US dollars per hour, as it is billed."""

    provider: str
    id: MachineId
    tag: str
    machine: str
    region: str | None
    spot: bool
    price: float | None
    made: float
    ended: float | None
    endpoint: Endpoint | None
    host_key: str
    node: str
    billing: Billing = BY_THE_SECOND

    def cost(self, now: float) -> float | None:
        """US dollars so far; None when the price is not known."""
        end = now if self.ended is None else self.ended
        return None if self.price is None else self.billing.cost(self.price, end - self.made)


class Ledger:
    """The ledger of this user on this machine.

    Parameters
    ----------
    folder
        Where it is; None: the environment variable ``SKYWARD_STATE``, or else the user's state directory.

    Raises
    ------
    ConfigError
        It can't be written there. Nothing must be bought then.
    """

    def __init__(self, folder: Path | None = None) -> None:
        chosen = folder or os.environ.get("SKYWARD_STATE") or platformdirs.user_state_path("skyward")
        self.folder = Path(chosen).absolute()  # the program may change its working directory
        self.path = self.folder / "ledger.sqlite"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self.path.chmod(0o600)
            with self._open() as db:
                # One transaction waits for the disk once; it waits its turn, too, as it begins as a writer.
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        except (OSError, sqlite3.Error) as error:
            raise self._unwritable(error) from error

    def __repr__(self) -> str:
        return f"<Ledger {self.path}>"

    def _unwritable(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"can't record purchases in {self.path}: {error}. Without that nothing is bought; make the folder "
            "writable, or set the environment variable SKYWARD_STATE to another one"
        )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # A connection for each use: threads and processes share the file, which is used a few times a minute.
        db = sqlite3.connect(self.path, timeout=30)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA synchronous = EXTRA")  # what is written survives a power failure right after it
        try:
            with db:
                yield db
        finally:
            db.close()

    # --- a pool's life ---

    def open_pool(self, tag: str, providers: Sequence[tuple[str, dict[str, object]]], key: KeyPair) -> Path:
        """Record that a pool begins; returns the path of its private key.

        Parameters
        ----------
        tag
            The pool's.
        providers
            (name, settings) of each; settings without secrets.
        key
            Its SSH key.

        Raises
        ------
        ConfigError
            It can't be recorded. Nothing must be bought then.
        """
        path, pid = self.key_path(tag), os.getpid()
        rows = [(tag, i, name, json.dumps(settings)) for i, (name, settings) in enumerate(providers)]
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            self.tidy()
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                try:
                    file.write(key.private)
                    file.flush()
                    with self._open() as db:
                        db.execute("INSERT INTO pools VALUES (?, ?, ?, ?, NULL)", (tag, pid, _birth(pid), time.time()))
                        db.executemany("INSERT INTO providers VALUES (?, ?, ?, ?)", rows)
                except BaseException:
                    path.unlink()  # nobody else would remove it
                    raise
        except FileExistsError:  # two pools with one name: no fault of the disk's
            raise
        except (OSError, sqlite3.Error) as error:
            raise self._unwritable(error) from error
        return path

    def key_path(self, tag: str) -> Path:
        """Path of a pool's private key, which exists while the pool is open."""
        return self.folder / "keys" / tag

    def known_hosts_path(self, tag: str, machine: MachineId) -> Path:
        """Path where the ssh command may be given one machine's host key; removed with the pool."""
        return self.folder / "keys" / f"{tag}@{''.join(c if c.isalnum() else '-' for c in machine)}"

    def stop_pool(self, tag: str) -> None:
        """Refuse all further orders of a pool, whoever places them."""
        with self._open() as db:
            db.execute("INSERT OR IGNORE INTO stopped VALUES (?, ?)", (tag, time.time()))

    def close_pool(self, tag: str, *, seen: bool = False) -> list[str]:
        """Record that nothing of a pool is left anywhere.

        Parameters
        ----------
        tag
            The pool's.
        seen
            Close it only if each of its machines is known to have ended. A later process may ask another account or
            region than the driver did, where nothing of the pool ever was.

        Returns
        -------
        list of str
            The machines because of which it was not closed, each with its provider.
        """
        now = time.time()
        with self._open() as db:
            query = "SELECT provider, id FROM machines WHERE tag = ? AND ended IS NULL"
            if unseen := [f"{row['id']} at {row['provider']}" for row in db.execute(query, (tag,)) if seen]:
                return unseen
            db.execute("UPDATE pools SET closed = ? WHERE tag = ? AND closed IS NULL", (now, tag))
            db.execute("UPDATE machines SET ended = ? WHERE tag = ? AND ended IS NULL", (now, tag))
        self.key_path(tag).unlink(missing_ok=True)
        for path in self.key_path(tag).parent.glob(f"{glob.escape(tag)}@*"):
            path.unlink(missing_ok=True)
        return []

    def close_unused(self, tag: str) -> bool:
        """Close a pool whose driver is gone, if it never ordered anything; whether it was closed."""
        with self._open() as db:
            bought = "SELECT tag FROM orders WHERE tag = ? UNION SELECT tag FROM machines WHERE tag = ?"
            if db.execute(bought, (tag, tag)).fetchone():
                return False
        self.close_pool(tag)
        return True

    def tidy(self) -> None:
        """Remove keys left by drivers that died before they had ordered anything, or at the very end."""
        for pool in self.pools():
            if pool.alive is False:
                self.close_unused(pool.tag)
        is_open = {pool.tag for pool in self.pools()}
        is_known = {pool.tag for pool in self.pools(all=True)}
        for path in (self.folder / "keys").glob("*"):
            tag = path.name.partition("@")[0]
            with contextlib.suppress(FileNotFoundError):  # other processes tidy up as well
                # A key exists a moment before its pool does.
                if tag in is_known - is_open or (tag not in is_known and path.stat().st_mtime < time.time() - _YOUNG):
                    path.unlink()

    def intend(self, provider: str, order: Order) -> None:
        """Record that machines are about to be created. Returns when that is on disk.

        Raises
        ------
        PoolNotActive
            The pool was stopped.
        """
        offer = order.offer
        row = (
            *(order.name, order.tag, provider, order.count),
            *((offer.machine, offer.region, offer.spot, offer.price) if offer else ("", None, False, None)),
            *(order.host_key.public if order.host_key else "", time.time(), None),
        )
        with self._open() as db:
            db.execute("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            if offer and offer.billing != BY_THE_SECOND:
                db.execute("INSERT INTO bills VALUES (?, ?, ?, ?)", (order.name, *dataclasses.astuple(offer.billing)))
            # After the insert, which makes other writers wait: a stop comes before it, or sees the order.
            if db.execute("SELECT 1 FROM stopped WHERE tag = ?", (order.tag,)).fetchone():
                raise PoolNotActive(f"{order.tag} was shut down by `skyward down`; nothing more is rented for it")

    def refuse(self, order: str) -> None:
        """Record that an order is known to have created nothing."""
        with self._open() as db:
            db.execute("UPDATE orders SET refused = ? WHERE name = ?", (time.time(), order))

    def made(self, provider: str, machines: Sequence[Machine]) -> None:
        """Record that machines exist. They cost money from when they were ordered. May be repeated."""
        rows = [(provider, machine.id, machine.order, machine.tag, machine.order, time.time()) for machine in machines]
        with self._open() as db:
            db.executemany(
                "INSERT OR IGNORE INTO machines (provider, id, ordered, tag, made) "
                "VALUES (?, ?, ?, ?, COALESCE((SELECT intended FROM orders WHERE name = ?), ?))",
                rows,
            )

    def reached(self, provider: str, machine: Machine, node: str) -> None:
        """Record a machine's address, and the name of its node.

        Parameters
        ----------
        provider
            Name of its provider.
        machine
            With its address.
        node
            Name in its pool.
        """
        at = machine.endpoint
        where = (at.host, at.port, at.user) if at else (None, None, None)
        self.made(provider, [machine])  # the reply with its id may have been lost
        with self._open() as db:
            db.execute(
                "UPDATE machines SET host = ?, port = ?, user = ?, node = ? WHERE provider = ? AND id = ?",
                (*where, node, provider, machine.id),
            )

    def ended(self, provider: str, ids: Sequence[MachineId]) -> None:
        """Record that machines are gone."""
        with self._open() as db:
            db.executemany(
                "UPDATE machines SET ended = ? WHERE provider = ? AND id = ? AND ended IS NULL",
                [(time.time(), provider, id) for id in ids],
            )

    # --- queries ---

    def pools(self, *, all: bool = False) -> list[PoolEntry]:
        """List pools that are open or left something behind, oldest first; with `all`, closed ones too."""
        with self._open() as db:
            rows = db.execute("SELECT * FROM pools ORDER BY opened").fetchall()
            providers = db.execute("SELECT * FROM providers ORDER BY position").fetchall()
        return [
            PoolEntry(
                row["tag"],
                [(p["name"], json.loads(p["settings"])) for p in providers if p["tag"] == row["tag"]],
                row["opened"],
                row["closed"],
                row["pid"],
                row["closed"] is None and _is_alive(row["pid"], row["pid_started"]),
            )
            for row in rows
            if all or row["closed"] is None
        ]

    def machines(self, tag: str | None = None) -> list[Entry]:
        """List the machines of a pool, or of all pools, oldest first, including those that are gone."""
        query = (
            "SELECT m.*, o.machine, o.region, o.spot, o.price, o.host_key, b.minimum, b.unit, b.minimum_cost "
            "FROM machines m LEFT JOIN orders o ON o.name = m.ordered LEFT JOIN bills b ON b.name = m.ordered "
            "WHERE ? IS NULL OR m.tag = ? ORDER BY m.made"
        )
        with self._open() as db:
            rows = db.execute(query, (tag, tag)).fetchall()
        return [_entry(row) for row in rows]

    def last_order(self, tag: str) -> float | None:
        """When the pool's last order was placed, of those that may have created something; None if there is none."""
        with self._open() as db:
            query = "SELECT MAX(intended) AS last FROM orders WHERE tag = ? AND refused IS NULL"
            last: float | None = db.execute(query, (tag,)).fetchone()["last"]
        return last


def _entry(row: sqlite3.Row) -> Entry:
    endpoint = Endpoint("ssh", row["host"], row["port"], row["user"]) if row["host"] else None
    return Entry(
        *(row["provider"], row["id"], row["tag"], row["machine"] or "", row["region"], bool(row["spot"])),
        *(row["price"], row["made"], row["ended"], endpoint, row["host_key"] or "", row["node"] or ""),
        Billing(row["minimum"] or 0.0, row["unit"] or 0.0, row["minimum_cost"] or 0.0),
    )


def _birth(pid: int) -> str:
    """Where and when a process started, by its kernel's count; tells it from a later process with the same pid."""
    try:
        if Path("/proc/self/stat").exists():
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            began = fields[18]
        else:
            state, began = _asked(pid)
    except (OSError, LookupError, ValueError):
        state = began = ""
    return f"{os.uname().nodename}/{'' if state[:1] in 'ZX' else began}"  # a zombie is listed until it is waited for


def _asked(pid: int) -> tuple[str, str]:
    """A process's state, and when it started, from the system's command; ValueError if there is none."""
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    state, began = said.stdout.split(None, 1)
    return state, began.strip().replace("/", "-")


def _is_alive(pid: int, birth: str) -> bool | None:
    host, _, began = birth.rpartition("/")
    if host != os.uname().nodename or not began:
        return None
    return _birth(pid) == birth
