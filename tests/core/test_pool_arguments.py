"""A wrong argument of `Compute` is an error before anything starts."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import skyward as sky


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


def test_nodes_on_one_machine_cant_each_have_the_same_folder() -> None:
    """An error before anything starts; such a pool may well be described, for other machines."""
    threads = threading.active_count()
    pool = sky.Compute(nodes=2, volume=sky.S3Volume("/my/data", "bucket"))
    with pytest.raises(sky.ConfigError, match=r"2 nodes on this machine .*'/my/data'.* Mount at 'data'"):
        pool.start()
    assert threading.active_count() == threads
