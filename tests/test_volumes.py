"""Folders on real hosts: they arrive whole, once, and stay for the next pool."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import skyward as sky
from skyward.core.tasks.jobs import TaskOptions
from tests.lab import Host, Lab, eventually
from tests.lab.fixtures import FreshHost, LabHosts
from tests.remote import Reach, index, reach, wheels
from tests.test_relay import patience, sent_by_driver

__all__ = ["index", "patience", "reach", "wheels"]  # fixtures

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MB = 2**20


def look(place: str) -> tuple[str, dict[str, int], str]:
    """Where the task runs, the sizes of all files, and a file's content."""
    import os

    sizes = {}
    for here, _, names in os.walk(place):
        for name in names:
            path = os.path.join(here, name)
            sizes[os.path.relpath(path, place)] = os.stat(path).st_size  # noqa: PTH116
    with open(f"{place}/train.csv") as file:  # noqa: PTH123
        return os.getcwd(), sizes, file.read()


def write(path: str) -> str:
    with open(path, "a") as file:  # noqa: PTH123
        file.write("changed")
    return path


def settings() -> tuple[dict[str, str], int]:
    """The variables, and the hour at the beginning of 1970."""
    import os
    import time

    return dict(os.environ), time.localtime(0).tm_hour


def leave(node: str) -> None:
    """Write one file of this node's own, and one of a name that all have."""
    import os
    import pathlib

    pathlib.Path("out/deep").mkdir(parents=True)
    pathlib.Path(f"out/deep/{node}.bin").write_bytes(os.urandom(30 << 20))
    pathlib.Path("out/same").write_text(node)


for function in (look, write, leave, settings):
    function.__module__ = "__main__"  # hosts don't have this module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (folder / "train.csv").write_text("x,y\n1,2\n")
    (folder / "deep" / "empty").touch()
    (folder / "deep" / "large").write_bytes(os.urandom(40 * MB))
    return folder


def sizes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def assert_gone(host: Host, folder: str) -> None:
    """An agent removes its folders once it has said goodbye."""
    eventually(lambda: host.run("sh", "-c", f"ls -d {folder} || echo gone").stdout == "gone\n", 20, f"{folder} is gone")


@pytest.mark.usefixtures("patience")
def test_a_folder_leaves_the_driver_once_and_then_not_at_all(
    lab: Lab, lab_hosts: LabHosts, reach: Reach, data: Path
) -> None:
    """Three hosts; tasks find it by the same relative path as here, and their folder goes with the pool."""
    hosts = lab_hosts(3)
    options: dict[str, Any] = {**reach(hosts), "volume": sky.LocalVolume("data", data)}
    with sky.Compute(**reach(hosts)):
        pass  # the environment is there
    sent = []
    for _ in range(2):
        before = sent_by_driver(lab)
        with sky.Compute(**options) as pool:
            found = pool.submit(look, "data").result()
            seen = [pool.dispatcher.submit(look, "data") for _ in range(6)]
            assert all(future.result()[1:] == (sizes(data), "x,y\n1,2\n") for future in seen)
        sent.append(sent_by_driver(lab) - before)
        assert "/.cache/skyward/run/" in found[0]
        for host in hosts:
            assert_gone(host, found[0])
    assert sent[0] < 1.5 * 40 * MB
    assert sent[1] < 4 * MB


PROGRAM = """
import sys
import skyward as sky
hosts = sky.SSH(hosts=[sys.argv[1]], user="root", key=sys.argv[2], known_hosts=sys.argv[3])
volume = sky.LocalVolume("data", sys.argv[5])
with sky.Compute(hosts, image=sky.Image(index=sys.argv[4]), volume=volume, orphan_timeout=3):
    print("too late", flush=True)
"""


def test_a_send_that_was_interrupted_goes_on_where_it_was(
    lab: Lab, fresh_host: FreshHost, reach: Reach, index: str, tmp_path: Path
) -> None:
    """The driver is killed in the middle: what has arrived is not sent again, and nothing of it looks whole."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.csv").write_text("x,y\n1,2\n")
    (data / "large").write_bytes(os.urandom(200 * MB))
    host = fresh_host()
    with sky.Compute(**reach([host])):
        pass  # the environment is there
    arguments = [host.address, str(lab.key), str(lab.known_hosts), index, str(data)]
    driver = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, cwd=tmp_path)

    def arrived() -> int:
        found = host.run("sh", "-c", "find /root/.cache/skyward/chunks -type f -name '*[0-9a-f]' 2>/dev/null | wc -l")
        return int(found.stdout)

    try:
        eventually(lambda: arrived() >= 10, 60, "some chunks have arrived")
    finally:
        driver.kill()
    assert driver.communicate()[0] == b""
    assert (
        host.run("sh", "-c", "ls -d /root/.cache/skyward/run/*/files/work/data 2>/dev/null || echo none").stdout
        == "none\n"
    )
    have, before = arrived(), sent_by_driver(lab)
    with sky.Compute(**reach([host]), volume=sky.LocalVolume("data", data)) as pool:
        assert pool.submit(look, "data").result()[1] == sizes(data)
    assert sent_by_driver(lab) - before < (200 - 4 * have + 10) * MB


def test_settings_reach_tasks_and_nothing_else_does(
    lab_hosts: LabHosts, reach: Reach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name; time zone and locale are the driver's."""
    for name, value in {"CHURN_URL": "u v", "OTHER_TOKEN": "secret", "TZ": "Asia/Tokyo", "LC_TIME": "C.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".env").write_text("CHURN_KEY='k'\n")
    options = reach(lab_hosts(1), {"env_from": ["CHURN_*", f"{tmp_path}/.env"]})
    with sky.Compute(**options) as pool:
        variables, hour = pool.submit(settings).result()
    assert {name: variables.get(name) for name in ("CHURN_URL", "CHURN_KEY", "OTHER_TOKEN", "TZ", "LC_TIME")} == {
        "CHURN_URL": "u v", "CHURN_KEY": "k", "OTHER_TOKEN": None, "TZ": "Asia/Tokyo", "LC_TIME": "C.UTF-8",
    }  # fmt: skip
    assert hour == 9


def test_files_of_all_hosts_come_home(lab_hosts: LabHosts, reach: Reach, tmp_path: Path) -> None:
    hosts = lab_hosts(2)
    with sky.Compute(**reach(hosts)) as pool:
        names = [pool.dispatcher.submit(leave, node, options=TaskOptions(node=node)) for node in pool.node_names]
        for name in names:
            name.result()
        with pytest.raises(sky.DownloadFailed, match=r"same is on node-\d and on node-\d"):
            pool.download("out", to=tmp_path / "home")
        assert not (tmp_path / "home").exists()
        pool.download("out/**/*.bin", to=tmp_path / "home")
        pool.download("out/same", to=tmp_path / "each" / "{node}")
    found = {path.name: path.stat().st_size for path in (tmp_path / "home" / "deep").iterdir()}
    assert found == {"node-1.bin": 30 * MB, "node-2.bin": 30 * MB}
    assert (tmp_path / "each" / "node-2" / "same").read_text() == "node-2"


def test_an_ordinary_user_cannot_write_into_it(fresh_host: FreshHost, reach: Reach, data: Path) -> None:
    """But may where that was asked for; the driver's files and the next pool's never change."""
    hosts = [fresh_host(users=("ann",))]
    volumes = [sky.LocalVolume("data", data), sky.LocalVolume("mine", data, read_only=False)]
    with sky.Compute(**reach(hosts, user="ann"), volume=volumes) as pool:
        for path in ("data/train.csv", "data/new"):
            with pytest.raises(PermissionError):
                pool.submit(write, path).result()
        assert pool.submit(write, "mine/train.csv").result()
        assert pool.submit(look, "mine").result()[2] == "x,y\n1,2\nchanged"
        assert pool.submit(look, "data").result()[2] == "x,y\n1,2\n"
        folder = pool.submit(look, "data").result()[0]
    assert_gone(hosts[0], folder)
    assert (data / "train.csv").read_text() == "x,y\n1,2\n"


def test_an_absolute_mount_is_where_it_should_be(fresh_host: FreshHost, reach: Reach, data: Path) -> None:
    host = fresh_host()
    with sky.Compute(**reach([host]), volume=sky.LocalVolume("/srv/data", data)) as pool:
        assert pool.submit(look, "/srv/data").result()[1] == sizes(data)
    eventually(lambda: host.run("ls", "/srv").stdout == "", 20, "the link is gone")
    with (
        pytest.raises(sky.VolumeFailed, match="it exists on this node"),
        sky.Compute(**reach([host]), volume=sky.LocalVolume("/etc", data)),
    ):
        pass


def test_a_full_disk_is_said_at_once(fresh_host: FreshHost, reach: Reach, data: Path) -> None:
    host: Host = fresh_host(disk="110M")
    with (
        pytest.raises(sky.VolumeFailed, match=r"no room on the disk: it needs 0.\d GB"),
        sky.Compute(**reach([host]), volume=sky.LocalVolume("data", data)),
    ):
        pass


def test_what_a_killed_agent_had_is_removed_by_the_next_start(fresh_host: FreshHost, reach: Reach, data: Path) -> None:
    """Also read-only folders of an ordinary user's."""
    host = fresh_host(users=("ann",))
    with sky.Compute(**reach([host], user="ann"), volume=sky.LocalVolume("data", data)) as pool:
        folder = pool.submit(look, "data").result()[0]
        host.run("sh", "-c", "kill -9 $(pgrep -u ann)")
    with sky.Compute(**reach([host], user="ann")):
        assert_gone(host, str(Path(folder).parents[1]))
