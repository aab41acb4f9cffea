"""skyward on the lab's hosts, reached by SSH."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from benchmarks.model import Peer, Setting, Stage
from benchmarks.peers.skyward_local import plugin

__all__ = ["PEERS"]


@contextlib.contextmanager
def _open(setting: Setting) -> Iterator[Stage]:
    from importlib import metadata

    import skyward as sky
    from benchmarks.hosts import hosts, index

    with hosts(setting) as lab:
        image = sky.Image(
            index=lab.lab.serve_index(index()),
            pip=[f"{name}=={metadata.version(name)}" for name in setting.packages],
        )
        provider = sky.SSH(
            hosts=[host.address for host in lab.all],
            user="root",
            key=lab.lab.key,
            known_hosts=lab.lab.known_hosts,
        )
        with sky.Compute(
            provider=provider,
            nodes=setting.nodes,
            worker=sky.Worker(concurrency=setting.slots),
            image=image,
            plugins=[plugin(setting)],
            console=False,
        ):
            yield Stage(
                setting,
                -1,
                meter=lab.meter,
                kill_node=lambda: lab.kill_first("skyward"),
                cut_power=lab.all[0].kill,
                replaces=True,
            )


PEERS = (
    Peer(
        "skyward-ssh",
        "skyward, nodes on the lab's hosts by SSH",
        _open,
        place="lab",
        packages=("skyward-cloud", "pypiserver"),
        imports=("skyward", "joblib"),
    ),
)
