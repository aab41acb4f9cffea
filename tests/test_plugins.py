"""`sky.plugins`: what they ask of a node's environment, and third parties' own."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module

import pytest
from joblib import Parallel, delayed

import skyward as sky
from skyward import plugins
from skyward.core.interfaces import Plugin

HERE = {name: importlib.metadata.version(name) for name in ("joblib", "scikit-learn", "numpy", "scipy")}


def pip(plugin, *given):
    return list(plugin.transform_image(sky.Image(pip=given), driver_environment=False).pip)


def test_they_are_frozen_values():
    assert plugins.joblib() == plugins.joblib()
    assert plugins.joblib("1.4.0") != plugins.joblib()
    assert isinstance(plugins.sklearn(), Plugin)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plugins.joblib().version = "2"
    assert plugins.__all__ == ["joblib", "sklearn"]


def test_the_drivers_version_is_pinned():
    assert pip(plugins.joblib()) == [f"joblib=={HERE['joblib']}"]
    assert pip(plugins.sklearn()) == [f"{name}=={HERE[name]}" for name in ("scikit-learn", "joblib", "numpy", "scipy")]


def test_a_version_can_be_given():
    assert pip(plugins.joblib(version="1.4.0")) == ["joblib==1.4.0"]
    assert "scikit-learn==1.5.2" in pip(plugins.sklearn(version="1.5.2"))


@pytest.mark.parametrize(
    "mine", ["joblib", "joblib>=1.3", "Joblib[x]==1.3 ; python_version>'3'", "joblib @ https://example.test/x"]
)
def test_what_the_user_names_is_left_alone(mine):
    assert pip(plugins.joblib(), "pandas", mine) == ["pandas", mine]


def test_names_are_compared_as_pip_does():
    assert "scikit_learn" in pip(plugins.sklearn(), "scikit_learn")
    assert not any(item.startswith("scikit-learn") for item in pip(plugins.sklearn(), "Scikit_Learn~=1.4"))
    assert f"joblib=={HERE['joblib']}" in pip(plugins.joblib(), "joblib-extras")


def test_two_plugins_ask_once():
    image = sky.Image()
    for plugin in (plugins.joblib("1.4.2"), plugins.sklearn()):
        image = plugin.transform_image(image, driver_environment=False)
    assert [item for item in image.pip if item.startswith("joblib")] == ["joblib==1.4.2"]
    assert len(set(image.preload)) == len(image.preload)


def test_nothing_is_added_where_the_driver_environment_is_used():
    image = plugins.sklearn().transform_image(sky.Image(), driver_environment=True)
    assert list(image.pip) == []
    assert "joblib" in image.preload


@pytest.mark.slow
def test_modules_to_preload_can_be_loaded():
    for plugin in (plugins.joblib(), plugins.sklearn()):
        for module in plugin.transform_image(sky.Image(), driver_environment=True).preload:
            import_module(module)


def test_a_version_that_is_not_here_is_an_error_there():
    with pytest.raises(sky.ConfigError, match=r"pip install joblib==0\.1"):
        sky.Compute(plugins=[sky.plugins.joblib("0.1")], console=False).start()


def test_a_package_that_is_missing_is_an_error(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(importlib.util, "find_spec", dict[str, object]().get)
    with pytest.raises(sky.ConfigError, match="pip install scikit-learn"):
        plugins.sklearn().transform_image(sky.Image(), driver_environment=True)
    with pytest.raises(sky.ConfigError, match="or give the plugin a version"):
        plugins.joblib().transform_image(sky.Image(), driver_environment=False)
    assert pip(plugins.joblib("1.4.0")) == ["joblib==1.4.0"]


def test_tasks_here_have_the_variables_that_a_plugin_sets(monkeypatch):
    class Setting(Plugin):
        def transform_image(self, image, *, driver_environment):
            monkeypatch.setenv("SET_BY_A_PLUGIN", "1")
            return image

    with sky.Compute(plugins=[Setting()], console=False) as pool:
        assert pool.submit(os.getenv, "SET_BY_A_PLUGIN").result() == "1"


@pytest.mark.slow
def test_joblibs_plugin_sets_no_variable_once_agents_start():
    """If it did, they would be started anew."""
    code = """
import os
import skyward as sky
plugin = sky.plugins.joblib()
before = dict(os.environ)
plugin.transform_image(sky.Image(), driver_environment=True)
assert os.environ == before, os.environ.keys() ^ before.keys()
"""
    environ = {name: value for name, value in os.environ.items() if name != "KMP_INIT_AT_FORK"}
    subprocess.run([sys.executable, "-c", code], env=environ, check=True)


@pytest.mark.slow
def test_a_pool_on_this_machine_loads_nothing_that_only_rented_ones_need():
    code = """
import sys
import skyward as sky
from joblib import Parallel, delayed
with sky.Compute(plugins=[sky.plugins.joblib()], console=False):
    assert Parallel(n_jobs=-1)(delayed(abs)(i) for i in range(3)) == [0, 1, 2]
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"asyncssh", "cryptography", "email", "rich", "skyward.core.nodes.bootstrap", "sqlite3"} & {
        *done.stdout.split()
    }


# --- a third party's, with public names only ---


@dataclass(frozen=True)
class Flag(sky.Plugin):
    """Sets a variable on the nodes, and keeps a list of what happens here."""

    value: str
    heard: list[str]

    def transform_image(self, image: sky.Image, *, driver_environment: bool) -> sky.Image:
        return dataclasses.replace(image, env={**image.env, "FLAG": self.value})

    @contextlib.contextmanager
    def around_client(self, pool):
        self.heard.append(f"in {pool.total_slots}")
        yield
        self.heard.append("out")

    def around_worker(self) -> str:
        return "tests.test_plugins:flagged"


@contextlib.contextmanager
def flagged():
    os.environ["SLOT"] = "wrapped " + os.environ["FLAG"]
    yield


def slot():
    return os.environ.get("SLOT")


@pytest.mark.slow
def test_a_plugin_of_a_third_party():
    heard: list[str] = []
    with sky.Compute(concurrency=2, plugins=[Flag("up", heard), sky.plugins.joblib()], console=False):
        assert heard == ["in 2"]
        assert set(Parallel(n_jobs=2)(delayed(slot)() for _ in range(4))) == {"wrapped up"}
    assert heard == ["in 2", "out"]
