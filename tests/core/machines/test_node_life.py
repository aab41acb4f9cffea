"""One machine as a node: what it is told about the others. Its life is driven in test_provision.py."""

from __future__ import annotations

import pytest

from skyward.core.machines.node_life import Identities
from skyward.core.spec import Endpoint, Machine


@pytest.mark.parametrize(
    ("max_nodes", "host", "has"), [(1, "10.0.0.1", False), (2, "10.0.0.1", True), (2, "127.0.0.1", False)]
)
def test_only_nodes_that_have_others_elsewhere_get_an_identity(max_nodes: int, host: str, has: bool) -> None:
    """So no port is opened on the node of a pool of one, nor on this machine, where sending costs nothing."""
    identities = Identities("sky-1", max_nodes)
    machine = Machine("m", Endpoint("ssh", host), "m")
    identity = identities.of("node-1", machine)
    assert (identity is not None) is has
    if identity is not None:
        other = identities.of("node-2", machine)
        assert other is not None
        assert identity["host"] == host
        assert identity["authority"] == other["authority"]
        assert identity["certificate"] != other["certificate"]
