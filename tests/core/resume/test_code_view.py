"""The digests of modules and the version that nodes get are of the same files."""

from __future__ import annotations

import time
from typing import Any

import pytest

from skyward.core.blobs.snapshots import Snapshots
from skyward.core.code.local_code import CodeSettings, LocalCode
from skyward.core.resume.code_view import CodeView
from tests.core.resume.test_origins import FILES, Project, project

__all__ = ["project"]  # a fixture


@pytest.fixture
def code(project: Project) -> LocalCode:
    project.write(FILES)
    return LocalCode(Snapshots(), CodeSettings(sent=True, wanted=(str(project.folder / project.top),)))


def certain(view: CodeView, module: str, code: LocalCode | None) -> bytes:
    """As the journal does it."""
    for _ in range(20):
        digest = view.origins(module)
        if view.is_certain():
            return digest
        view.look(code)
    pytest.fail("it does not become certain")


def content(version: Any, data: bytes) -> bool:
    """Whether a version has these bytes."""
    return any(data in bytes(blob) for blob in version.blobs.values())


@pytest.mark.slow
def test_what_was_just_written_is_in_the_version(project: Project, code: LocalCode) -> None:
    """Also if the pool has looked a moment before, and would not look again."""
    view, name = CodeView(), f"{project.top}.train"
    before = certain(view, name, code)
    first = view.version
    code.now()
    mark = b"".join([b"a new ", b"text"])  # this file is local code as well
    project.write({"util.py": f"EDITED = {mark!r}\n"})
    view.origins.refresh(now=True)
    assert certain(view, name, code) != before
    assert content(view.version, mark)
    assert not content(first, mark)


def test_looking_again_costs_nothing_while_nothing_changes(project: Project, code: LocalCode) -> None:
    view, name = CodeView(), f"{project.top}.train"
    certain(view, name, code)
    view.origins.refresh(now=True)
    view.origins(name)
    assert view.is_certain()
    view.forget()
    assert not view.is_certain()


def test_without_local_code_it_is_certain_at_once() -> None:
    view = CodeView()
    assert certain(view, "json", None)
    assert view.version is None


def test_a_copy_stays(project: Project, code: LocalCode) -> None:
    view, name = CodeView(), f"{project.top}.train"
    before = certain(view, name, code)
    copy = view.copy()
    project.write({"util.py": "EDITED = 1\n"})
    view.origins.refresh(now=True)
    assert certain(view, name, code) != before
    assert (copy.origins(name), copy.is_certain()) == (before, True)
    assert copy.version is not view.version


def test_a_copy_that_needs_a_file_changed_since_is_uncertain(project: Project, code: LocalCode) -> None:
    view = CodeView()
    certain(view, f"{project.top}.util", code)
    copy = view.copy()
    time.sleep(0.02)  # the clock of files has a tick
    project.write({"data.py": "def load():\n    return 2\n"})
    copy.origins(f"{project.top}.data")
    assert not copy.is_certain()
