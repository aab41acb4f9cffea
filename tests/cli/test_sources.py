"""Which providers a command queries."""

from __future__ import annotations

import re

import pytest

from skyward.cli.sources import chosen, named, places
from skyward.core.errors import ConfigError
from skyward.providers.ssh import SSH

from .conftest import REPOSITORY, Run


def test_each_cloud_of_a_provider_for_many_is_asked(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """Those whose key is found; it needs no name of them."""
    monkeypatch.setenv("DIGITALOCEAN_ACCESS_TOKEN", "x")
    asked, others = chosen(None)
    assert [(str(source), source.place) for source in asked] == [("libcloud:digitalocean",) * 2]
    assert places(asked, others) == ("libcloud:digitalocean (not set up, so not queried: aws, folder, vastai, verda)")


def test_the_pages_providers_are_understood(run: Run) -> None:
    """What docs/cli.md gives to --provider names settings that there are."""
    page = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    given = set(re.findall(r"[`']((?:aws|libcloud|ssh|vastai|verda):[^`']+)[`']", page))
    assert len(given) >= 3
    for source in named(given):
        assert source.provider.name.partition(":")[0] in ("aws", "libcloud", "ssh", "vastai", "verda")


def test_hosts_are_given_as_a_list() -> None:
    (given,) = named(["ssh:hosts=[box1,me@box2:2222]"])
    assert isinstance(given.provider, SSH)
    assert given.provider.hosts == ("box1", "me@box2:2222")
    for text in ("ssh", "ssh:hosts=box1"):
        (wrong,) = named([text])
        with pytest.raises(ConfigError, match=r"on the command line 'ssh:hosts=\["):
            _ = wrong.provider
