"""The lab, with its server and its hosts, belongs to the repository around this package.

Both are put at the end of the path, so that an installed skyward and an installed skyward_hetzner are what is tested.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_PACKAGE = Path(__file__).resolve().parents[1]
for name, folder in (("tests.lab", _PACKAGE.parents[1]), ("skyward_hetzner", _PACKAGE / "src")):
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        sys.path.append(str(folder))

from tests.lab.fixtures import *  # noqa: E402, F403  `lab`
from tests.remote import *  # noqa: E402, F403  `index`


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bought is written down here, and nobody's own token is used."""
    monkeypatch.setenv("SKYWARD_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HCLOUD_CONFIG", str(tmp_path / "cli.toml"))
    for name in ("HCLOUD_TOKEN", "HCLOUD_CONTEXT", "HCLOUD_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
