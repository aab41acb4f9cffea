"""The same joblib and scikit-learn code on every cloud, changing `provider=` only."""

from __future__ import annotations

import math
import re
import shutil

import numpy as np
import pytest
from joblib import Parallel, delayed

import skyward as sky
from skyward.core.machines import fleet
from tests.lab.clouds import Machines
from tests.lab.wait import eventually
from tests.providers.rentals import RENTALS, Rental, on
from tests.remote import *  # noqa: F403  fixtures
from tests.s3_servers import KEYS, moto_s3, needs_rclone, rclone_s3

pytestmark = [pytest.mark.clouds, pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))


@pytest.fixture(params=RENTALS, ids=lambda rental: rental.name)
def rental(request) -> Rental:
    return request.param


def make_task():
    """A function that travels by value, as one of a script does; nodes have no module `tests`."""

    def slow_task(i: int) -> int:
        import time

        time.sleep(0.05)
        return i * i

    return slow_task


slow_task = make_task()


def test_the_seed_example(rental, lab, index):
    with rental.cloud(lab) as cloud:
        with sky.Compute(
            provider=rental.provider(cloud),
            nodes=2,
            worker=sky.Worker(concurrency=4),
            image=sky.Image(index=index),
            console=False,
            plugins=[sky.plugins.joblib()],
        ) as compute:
            assert compute.total_slots == 8
            assert Parallel(n_jobs=-1)(delayed(slow_task)(i) for i in range(100)) == [i * i for i in range(100)]
        assert cloud.meter.live == []
        assert cloud.meter.ever("instance") != []


@on("aws", "vastai")
def test_grid_search(rental, lab, index):
    from sklearn.datasets import load_iris
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    X, y = load_iris(return_X_y=True)

    def search() -> GridSearchCV:
        return GridSearchCV(SVC(), {"C": [0.1, 1, 10], "gamma": [0.01, 0.1]}, cv=3, n_jobs=-1).fit(X, y)

    with rental.cloud(lab) as cloud:
        with sky.Compute(
            provider=rental.provider(cloud),
            nodes=2,
            concurrency=2,
            image=sky.Image(index=index),
            console=False,
            plugins=[sky.plugins.sklearn()],
        ):
            there = search()
        assert cloud.meter.live == []
    here = search()
    assert there.best_params_ == here.best_params_
    assert np.array_equal(there.cv_results_["mean_test_score"], here.cv_results_["mean_test_score"])


def test_a_man_in_the_middle_is_refused(rental, lab, index, monkeypatch):
    """A machine with another key at the same address never gets a task, nor anything else."""
    monkeypatch.setattr(fleet, "_TRIES", 1)  # machines
    with rental.cloud(lab) as cloud:
        cloud.faults.on("wrong_host_key", math.inf)
        with (
            pytest.raises(sky.ProvisioningError, match="key"),
            sky.Compute(provider=rental.provider(cloud, patience=20.0), image=sky.Image(index=index), console=False),
        ):
            pytest.fail("the block began")
        cloud.faults.clear()
        assert cloud.meter.live == []


def test_a_spot_machine_that_is_taken_back_is_replaced(rental, lab, index):
    if not rental.evict:
        pytest.skip(f"{rental.name} takes no machine back")
    with rental.cloud(lab) as cloud:
        with sky.Compute(
            provider=rental.provider(cloud),
            nodes=2,
            concurrency=2,
            image=sky.Image(index=index),
            console=False,
            allocation="always-spot",
        ) as pool:
            futures = [pool.submit(slow_task, i) for i in range(100)]
            eventually(futures[5].done)
            rental.evict(cloud, cloud.meter.ever("instance")[0])
            assert [future.result(60) for future in futures] == [i * i for i in range(100)]
            eventually(lambda: pool.total_slots == 4, 60.0)
            assert len(cloud.meter.ever("instance")) == 3
        assert cloud.meter.live == []


@on("aws", "hetzner")
def test_nodes_serve_while_others_are_still_being_bought(rental, lab, index):
    with rental.cloud(lab) as cloud:
        cloud.faults.on("slow_boot", 1, seconds=5.0)
        with sky.Compute(
            provider=rental.provider(cloud), nodes=(1, 2), image=sky.Image(index=index), console=False
        ) as pool:
            assert pool.total_slots == 1
            assert pool.submit(abs, -1).result(30) == 1
            eventually(lambda: pool.total_slots == 2, 60.0)
        assert cloud.meter.live == []


@on("libcloud:digitalocean", "verda")
def test_what_is_bought_and_what_it_cost_is_reported(rental, lab, index, caplog):
    caplog.set_level("INFO", "skyward")
    with rental.cloud(lab) as cloud:
        with sky.Compute(provider=rental.provider(cloud), image=sky.Image(index=index), console=False) as pool:
            pool.submit(abs, -1).result(30)
        told = [record.getMessage() for record in caplog.records]
    assert any(f"{rental.name}: ordering 1 x " in line and "/h" in line for line in told), told
    total = re.compile(r"0 machines left of 1, \$0\.0[01]")  # DigitalOcean takes a cent at least
    assert any(total.search(line) for line in told), told


def test_the_cheapest_of_several_clouds(lab, index):
    """Of a list of providers, not the first one but the cheapest."""
    by_name = {rental.name: rental for rental in RENTALS}
    dear, cheap = by_name["verda"], by_name["aws"]
    with dear.cloud(lab) as first, cheap.cloud(lab) as second:
        providers = [dear.provider(first), cheap.provider(second)]
        with sky.Compute(
            provider=providers, allocation="cheapest", image=sky.Image(index=index), console=False
        ) as pool:
            assert pool.submit(abs, -1).result(30) == 1
        assert (len(first.meter.ever("instance")), len(second.meter.ever("instance"))) == (0, 1)
        assert first.meter.live == second.meter.live == []


def test_the_next_cloud_is_asked_when_one_has_nothing(lab, index):
    by_name = {rental.name: rental for rental in RENTALS}
    first, second = by_name["aws"], by_name["verda"]
    with first.cloud(lab) as empty, second.cloud(lab) as full:
        empty.faults.on("no_capacity", math.inf)
        providers = [first.provider(empty), second.provider(full)]
        with sky.Compute(provider=providers, nodes=2, image=sky.Image(index=index), console=False) as pool:
            assert pool.submit(abs, -1).result(30) == 1
        assert len(full.meter.ever("instance")) == 2
        assert empty.meter.live == full.meter.live == []


def make_reader():
    """As `make_task`."""

    def read(path: str) -> str:
        with open(path) as file:  # noqa: PTH123
            return file.read()

    def write(path: str, text: str) -> None:
        with open(path, "w") as file:  # noqa: PTH123
            file.write(text)

    return read, write


read, write = make_reader()


@needs_rclone
@on("aws", "verda", "vastai")
@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_the_documents_bucket(kind, rental, lab, index, tmp_path, monkeypatch):
    """The S3 volume as it is printed, and one to write to: mounted on machines, copied to containers."""
    containers = rental.name == "vastai"
    serving = moto_s3(lab.gateway) if kind == "moto" else rclone_s3(tmp_path, lab.gateway)
    with serving as server, rental.make_cloud(Machines(lab, fuse=not containers)) as cloud:
        server.put("my-bucket", {"datasets/train.csv": b"x,y\n1,2\n"})
        options = {}
        if kind == "moto":
            for service in ("S3", "STS"):
                monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", server.url)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-drivers-own")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-drivers-secret")
        else:
            options = {"endpoint": server.url, **KEYS}
        volumes = [
            sky.S3Volume("/data", "my-bucket", "datasets/", read_only=True, **options),
            sky.S3Volume("out", "my-bucket", "results/", read_only=False, **options),
        ]
        with sky.Compute(
            provider=rental.provider(cloud), nodes=2, volume=volumes, image=sky.Image(index=index), console=False
        ) as pool:
            assert list(pool.map(read, ["/data/train.csv"] * 8)) == ["x,y\n1,2\n"] * 8
            mounted = "fuse.rclone" in pool.submit(read, "/proc/mounts").result()
            assert mounted == (not containers and shutil.which("fusermount3") is not None)
            for number in range(8):
                pool.submit(write, f"out/{number}", "1").result()
                assert server.get("my-bucket", f"results/{number}") == b"1"
        assert cloud.meter.live == []
