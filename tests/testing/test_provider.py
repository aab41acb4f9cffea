"""The suite for providers sees what is broken: it is run on providers that each break one promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testing.broken import BROKEN

REPOSITORY = Path(__file__).resolve().parents[2]

SEEN: dict[str, tuple[str, ...]] = {
    "PricesByTheMonth": ("sane_values_and_units",),
    "MemoryInMegabytes": ("sane_values_and_units",),
    "TellsItsSecrets": ("settings_are_json_without_secrets",),
    "ShowsEveryPool": ("pools_see_their_own_machines_only",),
    "ComplainsOfUnknownMachines": ("termination_may_be_repeated",),
    "LeavesKeysBehind": ("from_its_order_to_its_end",),
    "RunsWithoutAnAddress": ("from_its_order_to_its_end",),
    "IsUnsureOfARefusal": ("fault_while_creating", "no_capacity"),
    "IsSureOfALostReply": ("fault_while_creating", "lost_reply"),
    "SharesItsDriver": ("concurrent_queries_do_not_mix",),
}
"""What is broken, and words of the name of the test that must fail of it."""


def test_each_broken_provider_is_tried():
    assert {kind.__name__ for kind in BROKEN} == set(SEEN)


@pytest.mark.slow
def test_what_is_broken_is_seen():
    chosen = " or ".join(f"({' and '.join((kind, *words))})" for kind, words in SEEN.items())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "--tb=no", "-rfEp"]
    done = subprocess.run(
        [*command, "-k", chosen, str(REPOSITORY / "tests/testing/broken.py")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
        timeout=100,
    )
    failed = re.findall(r"^(?:FAILED|ERROR) \S+::(\S+)", done.stdout, re.MULTILINE)
    unseen = [
        kind for kind, words in SEEN.items() if not any(all(word in name for word in (kind, *words)) for name in failed)
    ]
    assert unseen == [], done.stdout[-4000:]
