"""Ending what is left: of one pool or all, from the ledger and from tags, with a question where somebody may mind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyward.core.errors import ConfigError, PoolNotActive
from skyward.core.machines.ledger import Ledger
from skyward.core.machines.ssh_keys import make_key
from skyward.core.spec import Order, Resources
from tests.core.folder_cloud import FolderCloud

from .conftest import Pools, Run

FULL = "sky-77-1-abcdef"


def open_tags(ledger: Ledger) -> list[str]:
    return [pool.tag for pool in ledger.pools()]


def test_a_dead_drivers_pool_is_ended_without_a_question(run: Run, pools: Pools, ledger: Ledger) -> None:
    pools.open("sky-1", 2)
    pools.open("sky-2")
    result = run("down", "sky-1")
    assert result.exit_code == 0, result.output
    assert result.stdout == "sky-1: 2 machine(s) terminated; nothing is left\n"
    assert result.stderr == "skyward: folder: terminating m-sky-1-1, m-sky-1-2\n"
    assert pools.cloud.left() == ["groups/sky-2", "machines/m-sky-2-1"]
    assert open_tags(ledger) == ["sky-2"]
    assert [entry.ended is None for entry in ledger.machines("sky-1")] == [False, False]


def test_all(run: Run, pools: Pools, ledger: Ledger) -> None:
    for n in range(3):
        pools.open(f"sky-{n}")
    result = run("down", "--all")
    assert result.exit_code == 0, result.output
    assert pools.cloud.left() == []
    assert open_tags(ledger) == []
    where = f"folder:folder={pools.cloud.folder}"
    again = run("down", "--all", "-p", where)
    assert (again.exit_code, again.stdout) == (0, f"nothing is left at {where}\n")


def test_without_a_provider_to_query_there_is_no_claim_that_nothing_is_left(run: Run) -> None:
    with pytest.raises(ConfigError, match="no provider has credentials here; run `skyward doctor`"):
        raise run("down", "--all").exception


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("n\n", False), ("", False)])
def test_a_living_driver_is_asked_about(run: Run, pools: Pools, answer: str, gone: bool) -> None:
    pools.open("sky-1", alive=True)
    result = run("down", "sky-1", input=answer)
    assert "is alive: the work of its nodes will be lost" in result.stderr
    assert (result.exit_code == 0) is gone
    assert (pools.cloud.left() == []) is gone


def test_yes_asks_nothing(run: Run, pools: Pools) -> None:
    pools.open("sky-1", alive=True)
    assert run("down", "sky-1", "--yes").exit_code == 0
    assert pools.cloud.left() == []


def test_with_all_one_question_for_all_that_may_live(run: Run, pools: Pools) -> None:
    """An answer of no ends nothing at all."""
    pools.open("sky-1", alive=True)
    pools.open("sky-2", alive=True)
    pools.open("sky-3")
    result = run("down", "--all", input="n\n")
    assert result.stderr.count("is alive") == 2
    assert "Terminate all of them?" in result.stderr
    assert len(pools.cloud.left()) == 6


def test_where_nobody_can_answer_it_says_how_to_do_without(run: Run, pools: Pools) -> None:
    pools.open("sky-1", alive=True)
    with pytest.raises(ConfigError, match="nothing was terminated; use --yes to skip the question"):
        raise run("down", "sky-1", input="").exception


def test_one_account_under_two_settings_is_swept_once(run: Run, pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the pool's own."""
    swept: list[float | None] = []
    clear = FolderCloud.clear
    monkeypatch.setattr(FolderCloud, "clear", lambda self, tag: swept.append(self.price) or clear(self, tag))
    pools.open("sky-1", 2)
    result = run("down", "--all", "-p", f"folder:folder={pools.cloud.folder},price=0.2")
    assert result.stdout == "sky-1: 2 machine(s) terminated; nothing is left\n"
    assert swept == [0.36]


@pytest.mark.slow
def test_ctrl_c_leaves_what_is_left_in_the_ledger(pools: Pools, ledger: Ledger) -> None:
    pools.open("sky-1")
    (Path(pools.cloud.folder) / "sticky").touch()
    command = [sys.executable, "-m", "skyward.cli", "down", "sky-1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "retrying" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told == "skyward: the rest stays in the ledger; run the command again\nskyward: interrupted\n"
    assert open_tags(ledger) == ["sky-1"]


def test_a_living_driver_buys_nothing_in_their_place(run: Run, pools: Pools, ledger: Ledger) -> None:
    pools.open("sky-1", alive=True)
    run("down", "sky-1", "--yes")
    with pytest.raises(PoolNotActive, match="skyward down"):
        ledger.intend("folder", Order("sky-1", 1, Resources(), name="sky-1-9"))


def test_machines_of_another_computer_are_asked_about(run: Run, cloud: FolderCloud) -> None:
    """Nobody here knows whether their driver lives."""
    cloud.create(Order("sky-9", 1, Resources(), name="sky-9-1"))
    where = ("-p", f"folder:folder={cloud.folder}")
    result = run("down", "--all", *where, input="n\n")
    assert "sky-9 belongs to another computer: its driver may be alive" in result.stderr
    assert len(cloud.left()) == 2
    assert run("down", "--all", *where, "--yes").exit_code == 0
    assert cloud.left() == []


def test_a_pool_is_ended_at_all_places_where_it_shows(run: Run, pools: Pools, tmp_path: Path) -> None:
    """Also where the ledger does not know of it."""
    pools.open("sky-1")
    (tmp_path / "other").mkdir()
    other = FolderCloud(str(tmp_path / "other"))
    other.create(Order("sky-1", 1, Resources(), name="sky-1-5"))
    result = run("down", "sky-1", "-p", f"folder:folder={other.folder}")
    assert result.stdout == "sky-1: 2 machine(s) terminated; nothing is left\n"
    assert pools.cloud.left() == other.left() == []


@pytest.mark.slow
def test_what_cant_be_terminated_is_reported_and_stays_in_the_ledger(run: Run, pools: Pools, ledger: Ledger) -> None:
    pools.open("sky-1")
    (Path(pools.cloud.folder) / "sticky").touch()
    result = run("down", "sky-1", "--timeout", "1")
    assert result.exit_code == 1
    reason = "folder: it can't be ended yet"
    assert f"sky-1: folder: can't terminate m-sky-1-1 of sky-1 within 1 s: {reason}" in result.stderr
    assert open_tags(ledger) == ["sky-1"]
    assert [entry.ended for entry in ledger.machines()] == [None]
    (Path(pools.cloud.folder) / "sticky").unlink()
    assert run("down", "sky-1").exit_code == 0
    assert open_tags(ledger) == []


def test_a_machine_that_is_not_shown_may_be_of_another_account(
    run: Run, pools: Pools, ledger: Ledger, tmp_path: Path
) -> None:
    """What the environment says today may not be what it said when the pool was opened."""
    pools.open("sky-1", 2)
    machines, away = Path(pools.cloud.folder) / "machines", tmp_path / "away"
    machines.rename(away)
    result = run("down", "--all")
    assert result.exit_code == 1
    assert "sky-1: m-sky-1-1 at folder, m-sky-1-2 at folder: not found there" in result.stderr
    assert "another account, project or region" in result.stderr
    assert "nothing is left" not in result.stdout
    assert open_tags(ledger) == ["sky-1"]
    away.rename(machines)
    assert run("down", "sky-1").stdout == "sky-1: 2 machine(s) terminated; nothing is left\n"
    assert pools.cloud.left() == []


def test_what_is_gone_can_be_forgotten(run: Run, pools: Pools, ledger: Ledger) -> None:
    """As machines that ended themselves long ago."""
    pools.open("sky-1")
    pools.cloud.destroy(["m-sky-1-1"])
    assert run("down", "sky-1").exit_code == 1
    result = run("down", "sky-1", "--forget")
    assert result.stdout == "sky-1: 0 machine(s) terminated; nothing is left\n"
    assert open_tags(ledger) == []


def test_one_that_can_t_be_ended_does_not_keep_the_others(run: Run, pools: Pools, ledger: Ledger) -> None:
    pools.open("sky-1")
    ledger.open_pool("sky-2", [("narnia", {})], make_key("x"))
    result = run("down", "--all", "--yes")
    assert result.exit_code == 1
    assert "sky-2: narnia: no provider is named 'narnia'" in result.stderr
    assert open_tags(ledger) == ["sky-2"]
    assert pools.cloud.left() == []


def test_with_all_a_provider_that_cant_be_asked_is_a_failure(run: Run, cloud: FolderCloud) -> None:
    """It may have machines of pools that nobody here knows."""
    (Path(cloud.folder) / "down").touch()
    result = run("down", "--all", "-p", f"folder:folder={cloud.folder}")
    assert result.exit_code == 1
    assert result.stderr == "skyward: folder: the API is down\n"


def test_an_order_that_was_on_its_way(run: Run, pools: Pools, ledger: Ledger) -> None:
    """The driver died while it was sent; the machine shows up a moment later."""
    tag = pools.open("sky-1", 0)
    (Path(pools.cloud.folder) / "slow").write_text("0.4")
    order = Order(tag, 1, Resources(), name="sky-1-1")
    ledger.intend("folder", order)
    pools.cloud.create(order)
    assert run("down", "sky-1").exit_code == 0
    assert pools.cloud.left() == []


@pytest.mark.slow
def test_two_at_the_same_time(run: Run, pools: Pools, command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """As the reaper and the user."""
    pools.open("sky-1", 4)
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(command("down", "sky-1").returncode)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes in ([0, 0], [0, 1], [1, 0]), "the second may find that there is no such pool any more"
    assert pools.cloud.left() == []


# --- which pool is meant ---


def test_the_beginning_of_a_name_is_enough_if_it_says_which(run: Run, pools: Pools) -> None:
    pools.open("sky-12-1-aa")
    pools.open("sky-13-1-bb")
    result = run("down", "sky-1")
    with pytest.raises(ConfigError, match="'sky-1' is ambiguous; use one of sky-12-1-aa, sky-13-1-bb"):
        raise result.exception
    assert run("down", "sky-12").exit_code == 0
    assert pools.cloud.left() == ["groups/sky-13-1-bb", "machines/m-sky-13-1-bb-1"]


def test_a_name_in_full_goes_before_one_that_begins_the_same(run: Run, pools: Pools) -> None:
    pools.open("sky-1")
    pools.open("sky-12")
    assert run("down", "sky-1").exit_code == 0
    assert pools.cloud.left() == ["groups/sky-12", "machines/m-sky-12-1"]


def test_an_unknown_pool(run: Run, pools: Pools) -> None:
    pools.open("sky-1")
    result = run("down", "narnia")
    with pytest.raises(ConfigError, match="no pool named 'narnia'; there are: sky-1"):
        raise result.exception


def test_a_pool_that_the_ledger_calls_closed_is_looked_for_again(run: Run, pools: Pools, ledger: Ledger) -> None:
    tag = pools.open("sky-1")
    ledger.close_pool(tag)
    assert run("down", "sky-1", "--yes").exit_code == 0
    assert pools.cloud.left() == []


def test_what_machines_left_at_another_computers_provider(run: Run, cloud: FolderCloud) -> None:
    """Where no machine tells of the pool, its name in full and the provider do."""
    cloud.create(Order(FULL, 1, Resources(), name=f"{FULL}-1"))
    cloud.destroy([f"m-{FULL}-1"])
    where = ("-p", f"folder:folder={cloud.folder}")
    assert isinstance(run("down", "sky", *where, "--yes").exception, ConfigError), "too short: it could be any pool's"
    assert cloud.left() == [f"groups/{FULL}"]
    assert run("down", FULL, *where, "--yes").exit_code == 0
    assert cloud.left() == []


@pytest.mark.parametrize("arguments", [[], ["sky-1", "--all"], ["sky-1", "--timeout", "0"], ["--al"]])
def test_bad_usage(run: Run, arguments: list[str]) -> None:
    assert run("down", *arguments).exit_code == 2


@pytest.mark.slow
def test_as_a_process(pools: Pools, ledger: Ledger, command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Without a terminal there is nobody to ask: nothing is ended."""
    pools.open("sky-1", alive=True)
    done: Any = command("down", "sky-1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(pools.cloud.left()) == 2
    done = command("down", "sky-1", "--yes")
    assert (done.returncode, done.stdout) == (0, "sky-1: 1 machine(s) terminated; nothing is left\n")
    assert pools.cloud.left() == []
    assert open_tags(ledger) == []
