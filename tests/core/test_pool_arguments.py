"""A wrong argument of `Compute` is an error before anything starts."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import skyward as sky
from skyward.core import pool_arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"provider": "narnia"}, ["narnia", "local", "ssh", "its package"]),
        ({"provider": 7}, ["provider=7", "sky.Local()"]),
        ({"provider": sky.Local}, ["Local()"]),
        ({"provider": []}, ["provider=[]"]),
        ({"nodes": 0}, ["nodes=0", "1 or more"]),
        ({"nodes": -2}, ["nodes=-2"]),
        ({"nodes": "three"}, ["nodes='three'", "whole number"]),
        ({"nodes": 1.5}, ["nodes=1.5"]),
        ({"nodes": True}, ["nodes=True"]),
        ({"nodes": (3, 2)}, ["nodes=(2, 3)"]),
        ({"nodes": 2, "provider": sky.SSH(["a"])}, ["nodes=2", "ssh has 1 machine:", "nodes=1"]),
        ({"nodes": (4, 9), "provider": [sky.SSH(["a", "b"]), sky.SSH(["c"])]}, ["nodes=4", "3 machines:", "nodes=3"]),
        ({"concurrency": 0}, ["concurrency=0"]),
        ({"concurrency": "many"}, ["concurrency='many'"]),
        ({"worker": 3}, ["worker=3", "sky.Worker"]),
        ({"memory": "lots"}, ["memory='lots'", "32GB"]),
        ({"memory": -1}, ["memory=-1"]),
        ({"vcpus": 0}, ["vcpus=0"]),
        ({"vcpus": 2, "cpu": 3}, ["vcpus=2", "cpu=3"]),
        ({"worker": sky.Worker(2), "concurrency": 2}, ["worker=", "concurrency=2", "only one"]),
        ({"allocation": "stolen"}, ["stolen", "always-spot"]),
        ({"timeout": -1}, ["timeout=-1"]),
        ({"timeout": "soon"}, ["timeout='soon'"]),
        ({"budget": 0}, ["budget=0", "US dollars"]),
        ({"budget": "3"}, ["budget='3'"]),
        ({"budget": float("inf")}, ["budget=inf"]),
        ({"dashboard": 0}, ["dashboard=0", "True for any free one", "1 to 65535"]),
        ({"dashboard": 65536}, ["dashboard=65536"]),
        ({"dashboard": "yes"}, ["dashboard='yes'"]),
        ({"dashboard": 80.0}, ["dashboard=80.0"]),
        ({"plugins": 5}, ["plugins=5"]),
        ({"plugins": [print]}, ["parentheses"]),
        ({"image": "ubuntu"}, ["image='ubuntu'", "sky.Image"]),
    ],
    ids=str,
)
def test_a_wrong_argument_is_an_error_at_once(arguments: dict[str, Any], words: list[str]) -> None:
    """A ConfigError before anything starts; it is a ValueError too, and says what and where."""
    threads = threading.active_count()
    with pytest.raises(sky.ConfigError) as caught:
        sky.Compute(**arguments)
    assert isinstance(caught.value, ValueError)
    for word in words:
        assert word in str(caught.value)
    assert threading.active_count() == threads


def test_a_pool_may_ask_for_as_many_machines_as_there_are() -> None:
    for provider in (sky.SSH(["a", "b"]), [sky.SSH(["a"]), sky.SSH(["b"])], [sky.SSH(["a"]), sky.Local()]):
        sky.Compute(provider=provider, nodes=2)
    sky.Compute(provider=sky.SSH(["a"]), nodes=(1, 5))


def test_nodes_on_one_machine_cant_each_have_the_same_folder() -> None:
    """An error before anything starts; such a pool may well be described, for other machines."""
    threads = threading.active_count()
    pool = sky.Compute(nodes=2, volume=sky.S3Volume("/my/data", "bucket"))
    with pytest.raises(sky.ConfigError, match=r"2 nodes on this machine .*'/my/data'.* Mount at 'data'"):
        pool.start()
    assert threading.active_count() == threads


@pytest.mark.parametrize(("value", "port"), [(None, None), (False, None), (True, 0), (1, 1), (8787, 8787)])
def test_the_port_of_a_page(value: object, port: int | None) -> None:
    assert pool_arguments.dashboard(value) == port


@pytest.mark.parametrize("missing", [["starlette"], ["uvicorn"], ["starlette", "uvicorn"]], ids=str)
def test_a_page_without_its_extra_is_an_error_at_once(missing: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)  # as for one that is not installed
    said = f"needs {' and '.join(missing)} on this machine: pip install 'skyward-cloud\\[dashboard\\]'"
    with pytest.raises(sky.ConfigError, match=f"dashboard=True {said}"):
        sky.Compute(dashboard=True)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (3, "report 3 is not the path of a file"),
        ("", "report '' is not"),
        ("/", "is a folder; name a file"),
        ("/nowhere/run.html", "there is no folder /nowhere; make it first"),
    ],
    ids=str,
)
def test_the_path_of_a_report(path: object, words: str) -> None:
    with pytest.raises(sky.ConfigError, match=words):
        pool_arguments.report(path)


def test_a_report_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    assert pool_arguments.report(tmp_path / "run.html") == str(tmp_path / "run.html")
