"""The documentation is true: its Python runs, its links lead somewhere, and it names every error and command.

The Python blocks of a page run in order as one program, with line numbers that are those of the page. An HTML comment
on the line before a block says how it runs:

``<!-- test: lab -->``
    It needs hosts. It runs in the lab, where `sky.SSH` takes the lab's hosts instead of those that are written.
``<!-- test: skip REASON -->``
    It does not run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from skyward.core import errors
from tests.lab import Lab
from tests.lab.fixtures import LabHosts
from tests.wheels import wheels  # noqa: F401  a fixture

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
DIRECTIVE = re.compile(r"<!-- test: (lab|skip)( .+)? -->")

# Imported in the lab on a page's first line, which is its heading: the hosts of the page become the lab's, which get
# packages from the lab's index.
LAB = """\
import dataclasses, json, os
import skyward as sky

lab = json.loads(os.environ["LAB"])


def SSH(hosts, *, real=sky.SSH, **options):
    return real(hosts=lab["hosts"][: len(hosts)], user="root", key=lab["key"], known_hosts=lab["known_hosts"])


def Compute(*args, real=sky.Compute, image=sky.Image(), **options):
    return real(*args, image=dataclasses.replace(image, index=lab["index"]), **options)


sky.SSH, sky.Compute = SSH, Compute
"""


class Block(NamedTuple):
    """A fenced block of Python; `first` is the index of its first line of code."""

    first: int
    lines: list[str]
    mode: str | None


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        if lines[index].startswith("```"):
            end = next(i for i in range(index + 1, len(lines)) if lines[i].startswith("```"))
            if lines[index] == "```python":
                directive = DIRECTIVE.fullmatch(lines[index - 1]) if index else None
                found.append(Block(index + 1, lines[index + 1 : end], directive[1] if directive else None))
            index = end
        index += 1
    return found


def program(text: str, *modes: str | None) -> str:
    """The blocks of these modes, each at the line where it stands in the page."""
    lines = [""] * len(text.splitlines())
    for block in blocks(text):
        if block.mode in modes:
            lines[block.first : block.first + len(block.lines)] = block.lines
    return "\n".join(lines)


def run(code: str, name: str, folder: Path, **environment: str) -> None:
    script = folder / f"{name.replace('/', '_')}.py"
    script.write_text(code, encoding="utf-8")
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        check=False,
    )
    assert done.returncode == 0, f"{name} (line numbers are the page's)\n{done.stdout}\n{done.stderr}"


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def pages_with(*modes: str | None) -> list[Path]:
    return [page for page in PAGES if any(block.mode in modes for block in blocks(page.read_text(encoding="utf-8")))]


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with(None), ids=name_of)
def test_python_runs_here(page: Path, tmp_path: Path) -> None:
    run(program(page.read_text(encoding="utf-8"), None), name_of(page), tmp_path)


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("lab"), ids=name_of)
def test_python_runs_on_hosts(
    page: Path,
    tmp_path: Path,
    lab: Lab,
    lab_hosts: LabHosts,
    wheels: Path,  # noqa: F811  the fixture
) -> None:
    known = {
        "hosts": [host.address for host in lab_hosts(2)],
        "key": str(lab.key),
        "known_hosts": str(lab.known_hosts),
        "index": lab.serve_index(wheels),
    }
    (tmp_path / "in_the_lab.py").write_text(LAB, encoding="utf-8")
    code = "import in_the_lab" + program(page.read_text(encoding="utf-8"), None, "lab")
    run(code, name_of(page), tmp_path, LAB=json.dumps(known))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_is_python(page: Path) -> None:
    """Also the blocks that do not run, and every block that does not has a reason."""
    text = page.read_text(encoding="utf-8")
    for block in blocks(text):
        compile("\n" * block.first + "\n".join(block.lines), name_of(page), "exec")
    for comment in re.findall(r"<!-- test:.*-->", text):
        match = DIRECTIVE.fullmatch(comment)
        assert match is not None, comment
        assert match[1] != "skip" or match[2], f"{comment}: say why"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_error_has_advice() -> None:
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    advised = set(re.findall(r"^### (\w+)$", page, flags=re.MULTILINE))
    assert advised == set(errors.__all__)


def test_commands_of_make_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, flags=re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"^make ([\w-]+)", text, flags=re.MULTILINE)) | set(re.findall(r"`make ([\w-]+)", text))
        assert named <= targets, name_of(page)


def test_both_commands_come_first() -> None:
    """A newcomer reads them before anything else that can be typed."""
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert [block.strip() for block in fenced[:2]] == ["make demo", "make test"]


def test_blocks_are_found() -> None:
    page = (
        "text\n```python\na = 1\n```\n<!-- test: skip no host -->\n```python\nb\n```\n```bash\nc\n```\n"
        "<!-- test: lab -->\n```python\nd\n```\n"
    )
    assert [(block.first, block.lines, block.mode) for block in blocks(page)] == [
        (2, ["a = 1"], None),
        (6, ["b"], "skip"),
        (13, ["d"], "lab"),
    ]
    assert program(page, None).splitlines()[2] == "a = 1"
