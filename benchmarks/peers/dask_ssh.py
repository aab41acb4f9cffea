"""Dask on the lab's hosts: workers are started over SSH and talk to the scheduler over plain TCP, as usual, or TLS."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.model import Peer, Setting, Stage

__all__ = ["PEERS"]

_PACKAGES, _OURS, _KEYS = "/opt/benchmark/packages", "/opt/benchmark/ours", "/opt/benchmark/keys"


@contextlib.contextmanager
def _open(setting: Setting, *, tls: bool) -> Iterator[Stage]:
    from distributed import Client, LocalCluster, Security
    from joblib import parallel_config

    from benchmarks.hosts import REPOSITORY, hosts

    # Hosts see the packages of this environment, instead of installing them: that is not what is measured.
    files: dict[str, str | Path] = {
        _PACKAGES: Path(sysconfig.get_path("purelib")),
        f"{_OURS}/benchmarks": REPOSITORY / "benchmarks",
    }
    options, security = f"--nthreads {setting.slots} --nworkers 1 --no-dashboard --local-directory /tmp", None
    with contextlib.ExitStack() as stack:
        if tls:
            security = Security.temporary()
            keys = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (keys / "ca").write_text(security.tls_ca_file)
            (keys / "worker").write_text(security.tls_worker_key + security.tls_worker_cert)
            files[_KEYS] = keys
            options += f" --tls-ca-file {_KEYS}/ca --tls-cert {_KEYS}/worker --tls-key {_KEYS}/worker"
        lab = stack.enter_context(hosts(setting, files))
        gateway = lab.lab.gateway
        cluster = stack.enter_context(
            LocalCluster(n_workers=0, host=gateway, dashboard_address=None, security=security)
        )
        python = f"env PYTHONPATH={_PACKAGES}:{_OURS} python3.{sys.version_info.minor}"
        worker = f"{python} -m distributed.cli.dask_worker {cluster.scheduler_address}"
        for host in lab.all:
            command = [*lab.ssh(host), f"exec {worker} {options}"]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(_end, process)
        client = stack.enter_context(Client(cluster))
        client.wait_for_workers(setting.nodes, timeout=60)
        stack.enter_context(parallel_config(backend="dask"))
        yield Stage(
            setting,
            -1,
            meter=lab.meter,
            kill_node=lambda: lab.kill_first("multiprocessing.spawn"),
            cut_power=lab.all[0].kill,
            replaces=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(10)


_SKIPS = {"sleep_long": "2000 x 5 s with one process of 10 threads a host says what dask's says"}

PEERS = tuple(
    Peer(
        name,
        title,
        functools.partial(_open, tls=tls),
        place="lab",
        packages=packages,
        imports=("distributed", "joblib"),
        skips=_SKIPS,
    )
    for name, title, tls, packages in (
        ("dask-ssh", "joblib's Dask backend, workers on the lab's hosts", False, ("distributed",)),
        ("dask-tls", "the same over TLS", True, ("distributed", "cryptography")),
    )
)
