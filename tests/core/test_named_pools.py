"""Pools that files describe."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import skyward as sky
from skyward.core.named_pools import arguments
from skyward.joblib_ext.plugin import JoblibPlugin

KNOWN = list(inspect.signature(sky.Compute).parameters)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    (folder / "deep" / "down").mkdir(parents=True)
    (folder / "data").mkdir()
    monkeypatch.chdir(folder / "deep" / "down")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return folder


def describe(folder: Path, text: str) -> dict[str, Any]:
    (folder / "pyproject.toml").write_text(f"[tool.skyward.pools.gpu]\n{text}\n")
    return arguments("gpu", KNOWN)


def test_every_kind_of_argument(project: Path) -> None:
    """Names and tables become objects; paths are relative to the file, wherever the program runs."""
    (project / "requirements.txt").write_text("six\n")
    found = describe(
        project,
        """
        provider = ["local", {name = "ssh", hosts = ["box"]}]
        nodes = [2, 10]
        memory = "32GB"
        budget = 3.0
        resume = "search.run"
        plugins = ["joblib"]
        worker = {concurrency = 10}
        image = {pip = ["polars"], requirements = "requirements.txt", env = {A = "1"}, local = ["data", "helper"]}
        volumes = {data = "data"}
        """,
    )
    assert [type(provider) for provider in found["provider"]] == [sky.Local, sky.SSH]
    assert found["nodes"] == (2, 10)
    assert (found["memory"], found["budget"]) == ("32GB", 3.0)
    assert found["resume"] == str(project / "search.run")
    assert [type(plugin) for plugin in found["plugins"]] == [JoblibPlugin]
    assert found["worker"] == sky.Worker(concurrency=10)
    image = found["image"]
    assert set(image.pip) == {"polars", "six"}
    assert dict(image.env) == {"A": "1"}
    assert list(image.local) == [str(project / "data"), "helper"]
    (volume,) = found["volumes"]
    assert (volume.path, str(volume.source)) == ("data", str(project / "data"))


def test_the_projects_file_wins_over_the_users(project: Path, tmp_path: Path) -> None:
    config = tmp_path / "config" / "skyward"
    config.mkdir(parents=True)
    (config / "config.toml").write_text("[pools.gpu]\nnodes = 1\n[pools.mine]\nnodes = 5\n")
    assert describe(project, "nodes = 3") == {"nodes": 3}
    assert arguments("mine", KNOWN) == {"nodes": 5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nodess = 2", ["pyproject.toml [tool.skyward.pools.gpu]", "unknown key 'nodess'", "did you mean nodes?"]),
        ("worker = {concurency = 2}", ["[tool.skyward.pools.gpu] worker", "did you mean concurrency?"]),
        ("worker = 3", ["worker: 3 is not a table"]),
        ("image = {pipp = []}", ["image: unknown key 'pipp'; did you mean pip?"]),
        ('provider = "narnia"', ["narnia"]),
        ('provider = {region = "x"}', ["has no name"]),
        ('provider = {name = "aws", regionn = "x"}', ["aws has no setting 'regionn'"]),
        ("plugins = [{name = 'joblib'}]", ["are not names"]),
        ('plugins = ["sklern"]', ["no plugin is named 'sklern'; did you mean 'sklearn'?"]),
        ('volumes = {"/" = "data"}', ["'/' is not a possible mount point"]),
        ("zzz = 1", ["unknown key 'zzz'; there are: provider"]),
    ],
)
def test_what_is_wrong_is_named_with_its_place(project: Path, text: str, words: list[str]) -> None:
    with pytest.raises(sky.ConfigError) as caught:
        describe(project, text)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_pool_and_files_that_cant_be_read(project: Path) -> None:
    with pytest.raises(sky.ConfigError, match=r"no pool is named 'gpu'; available: none\. Describe it"):
        arguments("gpu", KNOWN)
    describe(project, "nodes = 1")
    with pytest.raises(sky.ConfigError, match="did you mean 'gpu'"):
        arguments("gpus", KNOWN)
    (project / "pyproject.toml").write_text("[tool.skyward\n")
    with pytest.raises(sky.ConfigError, match="can't be read"):
        arguments("gpu", KNOWN)
    (project / "pyproject.toml").write_text("[tool.skyward]\npools = 3\n")
    with pytest.raises(sky.ConfigError, match="3 is not a table"):
        arguments("gpu", KNOWN)


def test_a_pool_is_made_from_it_and_arguments_replace_its_own(project: Path) -> None:
    describe(project, "nodes = 2\nworker = {concurrency = 3}")
    made = sky.Compute.named("gpu", budget=5)._settings
    assert (made.nodes.max, made.worker.slots, made.budget) == (2, 3, 5.0)
    with pytest.raises(sky.ConfigError, match="nodes=0"):
        sky.Compute.named("gpu", nodes=0)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('nodes = "x"', "nodes"),
        ("worker = {concurrency = -1}", "concurrency"),
        ('timeout = "soon"', "timeout"),
        ('image = {sync = "some"}', "sync"),
        ('plugins = ["sklern"]', "no plugin is named 'sklern'"),
        ("zzz = 1", "unknown key 'zzz'"),
    ],
)
def test_a_wrong_value_is_named_with_its_file_once(project: Path, text: str, word: str) -> None:
    (project / "pyproject.toml").write_text(f"[tool.skyward.pools.gpu]\n{text}\n")
    with pytest.raises(sky.ConfigError) as caught:
        sky.Compute.named("gpu")
    assert str(caught.value).count("pyproject.toml [tool.skyward.pools.gpu]") == 1
    assert word in str(caught.value)


def test_an_argument_replaces_the_files_whatever_it_is_called_there(project: Path) -> None:
    describe(project, "cpu = 4\nworker = {concurrency = 3, attempts = 2}\nvolumes = {data = 'data'}")
    found = arguments("gpu", KNOWN, {"vcpus": 8, "concurrency": 5, "volume": ()})
    assert found == {"vcpus": 8, "worker": sky.Worker(concurrency=5, attempts=2), "volume": ()}
    with pytest.raises(sky.ConfigError, match="is not the name of a pool"):
        sky.Compute.named(["gpu"])  # type: ignore[arg-type]


def test_a_nearer_file_without_pools_hides_none(project: Path) -> None:
    describe(project, "nodes = 3")
    (project / "deep" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert arguments("gpu", KNOWN) == {"nodes": 3}
