"""A pytest plugin that writes what became of each test to the file $FOREIGN_OUTCOMES, one JSON list a line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_seen: dict[str, list[str]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test failed if any of its phases did."""
    name = name_of(report)
    if (report.when == "call" or report.outcome != "passed") and _seen.get(name, [""])[0] != "failed":
        outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
        crash = getattr(report.longrepr, "reprcrash", None)
        _seen[name] = [outcome, crash.message.split("\n")[0] if crash is not None else ""]


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _seen[report.nodeid] = ["failed", str(report.longrepr)[-500:]]


def pytest_sessionfinish() -> None:
    lines = [json.dumps([name, *outcome]) for name, outcome in _seen.items()]
    Path(os.environ["FOREIGN_OUTCOMES"]).write_text("\n".join(lines))


def name_of(test: pytest.Item | pytest.TestReport) -> str:
    """The same wherever the suite lies: ``test_search::test_refit``."""
    return f"{Path(test.location[0]).stem}::{test.nodeid.partition('::')[2]}"
