"""The documentation is true: its Python runs, its links lead somewhere, and what it names exists.

The Python blocks of a page run in order as one program, with line numbers that are those of the page. An HTML comment
on the line before a block says how it runs:

``<!-- test: lab -->``
    It needs hosts. It runs in the lab, where `sky.SSH` takes the lab's hosts instead of those that are written.
``<!-- test: gpus -->``
    It needs GPUs. It runs where `nvidia-smi` is a stand-in that lists two.
``<!-- test: skip REASON -->``
    It does not run.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import importlib
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

import skyward
from skyward import cli
from skyward.core import errors, registry
from tests.gpus import A100, plant, script
from tests.lab import Lab
from tests.lab.fixtures import LabHosts
from tests.syntax import nodes
from tests.wheels import wheels  # noqa: F401  a fixture

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
DIRECTIVE = re.compile(r"<!-- test: (gpus|lab|skip)( .+)? -->")

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


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("gpus"), ids=name_of)
def test_python_runs_with_gpus(page: Path, tmp_path: Path) -> None:
    plant(tmp_path / "bin", script([A100, A100]))
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    run(program(page.read_text(encoding="utf-8"), None, "gpus"), name_of(page), tmp_path, PATH=path)


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


# What follows looks at all pages in one test: as one for each, pytest itself would take most of the time.


def on_pages(find: Callable[[Path], Iterable[str]], pages: Iterable[Path] = PAGES) -> dict[str, list[str]]:
    """What is wrong, page by page; empty if nothing is."""
    return {name_of(page): found for page in pages if (found := sorted(set(find(page))))}


def test_python_is_python() -> None:
    """Also the blocks that do not run, and every block that does not has a reason."""
    assert on_pages(bad_python) == {}


def bad_python(page: Path) -> Iterator[str]:
    text = read(page)
    for block in blocks(text):
        try:
            compile("\n" * block.first + "\n".join(block.lines), name_of(page), "exec")
        except SyntaxError as error:
            yield str(error)
    for comment in re.findall(r"<!-- test:.*-->", text):
        match = DIRECTIVE.fullmatch(comment)
        if match is None or (match[1] == "skip" and not match[2]):
            yield f"{comment}: not a directive, or without its reason"


def test_links_lead_somewhere() -> None:
    assert on_pages(broken_links) == {}


def broken_links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\((?!https://)([^)\s]+)\)", read(page)):
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            yield target


@cache
def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", read(page), flags=re.MULTILINE)
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


# --- names that pages mention ---

PLACEHOLDERS = {"sky.Name"}
OTHERS = {"ProcessPoolExecutor", "SharedMemory"}  # Python's
OTHERS |= {"BindInterface", "DisableForwarding", "ProxyUseFdpass"}  # ssh's
OTHERS |= {"KillMode", "TimeoutStopSec"}  # systemd's

DIAGRAMS = re.compile(r"^```(?:text)?\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
FENCES = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)
SOURCES = sorted((REPOSITORY / "skyward").rglob("*.py"))
GROUPS = {registry.PROVIDERS, registry.TRANSPORTS, registry.LISTENERS, registry.FRONTENDS}  # of entry points


@cache
def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCES.sub("", read(page))


@cache
def code(page: Path) -> list[str]:
    """What stands in backticks within a page's prose."""
    return re.findall(r"`([^`\n]+)`", prose(page))


@cache
def files() -> list[str]:
    folders = ("skyward", "tests", "benchmarks", "contrib", "examples")
    return [path.as_posix() for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]


@cache
def is_file(path: str) -> bool:
    return any(known.endswith(f"/{path}") for known in files())


def test_files_that_are_named_exist() -> None:
    """Paths such as `core/tasks/schedule.py`, in backticks or in a diagram, and rooms such as `skyward/worker/`."""
    assert on_pages(missing_files) == {}


def missing_files(page: Path) -> Iterator[str]:
    text = "\n".join([*code(page), *DIAGRAMS.findall(read(page))])
    yield from (path for path in re.findall(r"[\w/-]*\w\.py\b", text) if not is_file(path))
    for path in re.findall(r"(?<![\w/.~<-])(?:skyward|tests|benchmarks|docs|contrib)/[\w/-]+(?=`|\s|$)", text):
        if not (REPOSITORY / path).exists():
            yield path


def resolve(name: str) -> object:
    """The module or attribute of a dotted name; AttributeError if there is none."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)


def test_names_that_are_named_exist() -> None:
    """`sky.Image`, `skyward.core.spec`, `skyward.worker.stdio`, and parts of code that begin so."""
    assert on_pages(missing_names) == {}


def missing_names(page: Path) -> Iterator[str]:
    for name in re.findall(r"(?<![\w./-])(?:sky|skyward)(?:\.[A-Za-z_]\w*)+", "\n".join(code(page))):
        full = re.sub(r"^sky\.", "skyward.", name)
        try:
            if full not in GROUPS and name not in PLACEHOLDERS:
                resolve(full)
        except AttributeError:
            yield name


def test_each_module_has_a_line() -> None:
    """The tables of docs/modules.md: a row for each module, under the heading of its room."""
    listed: list[str] = []
    room = ""
    for line in read(REPOSITORY / "docs" / "modules.md").splitlines():
        if match := re.match(r"#+ (.*)", line):
            found = re.search(r"`(skyward/[\w/]*)`", match[1])
            room = found[1] if found else ""
        elif room and (match := re.match(r"\| ((?:`\w+`(?:, )?)+) \| \S", line)):
            listed += [f"{room}{name}.py" for name in re.findall(r"`(\w+)`", match[1])]
    modules = [path.relative_to(REPOSITORY).as_posix() for path in SOURCES if not path.name.startswith("__")]
    assert sorted(listed) == sorted(modules), "each module has one row in docs/modules.md"


def defined() -> set[str]:
    """Every class of the package, and its attributes and methods as `Class.name`."""
    found: set[str] = set()
    for path in SOURCES:
        for node in nodes(read(path)):
            if isinstance(node, ast.ClassDef):
                names = {item.name for item in node.body if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))}
                names |= {ast.unparse(item.target) for item in node.body if isinstance(item, ast.AnnAssign)}
                found |= {node.name, *(f"{node.name}.{name}" for name in names)}
    return found


def test_classes_of_the_architecture_exist() -> None:
    """Names like `SlotPool` and `Dispatcher.call` on the pages about the inside, in diagrams too."""
    known = defined()
    missing = set()
    for name in ("architecture.md", "modules.md", "words.md"):
        page = REPOSITORY / "docs" / name
        text = "\n".join([*code(page), *DIAGRAMS.findall(read(page))])
        missing |= set(re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+(?:\.[a-z_]\w+)?\b", text)) - known
        missing |= set(re.findall(r"\b[A-Z][A-Za-z]+\.[a-z_]\w+\b", text)) - known
    assert missing == set()


def test_classes_that_are_named_exist() -> None:
    """A name like `NoCapacity` in backticks is a class of ours, of Python's, or a word that our sources know."""
    assert on_pages(missing_classes, [page for page in PAGES if page.parent.name != "decisions"]) == {}


def missing_classes(page: Path) -> set[str]:
    named = {name for text in code(page) for name in re.findall(r"(?<!ec2:)\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b", text)}
    return named - words() - OTHERS


@cache
def words() -> frozenset[str]:
    """Every word that the sources of the package hold, and Python's own names."""
    sources = "\n".join(map(read, SOURCES))
    return frozenset(re.findall(r"\w+", sources)) | frozenset(vars(builtins))


# --- errors and their texts ---


@cache
def literals() -> list[str]:
    """Every string of the package, with NUL for what an f-string fills in."""
    found: list[str] = []
    for path in SOURCES:
        for node in nodes(read(path)):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quotations(page: Path) -> list[str]:
    return re.findall(r'"([^"\n]+)"', re.sub(r"`[^`]+`", "", prose(page)))


@pytest.mark.parametrize("page", [REPOSITORY / "docs" / name for name in ("troubleshooting.md", "cli.md")], ids=name_of)
def test_texts_that_are_quoted_are_said(page: Path) -> None:
    """A quotation on these pages is one of a message; `...` stands for what the message fills in."""
    said = "\n".join(text.replace("\n", " ") for text in literals())
    missing = []
    for quotation in quotations(page):
        parts = [re.escape(part.strip()) for part in quotation.split("...") if part.strip()]
        if not re.search("[^\n]*?".join(parts), said):
            missing.append(quotation)
    assert missing == []


def test_errors_stand_in_their_tree() -> None:
    """The table of errors in docs/api.md: each with a base that it has."""
    rows = re.findall(r"^\| `sky\.(\w+)` \| `([\w.]+)` \|", read(REPOSITORY / "docs" / "api.md"), flags=re.MULTILINE)
    bases = {name: base for name, base in rows if name in errors.__all__}
    assert set(bases) == set(errors.__all__)
    known = {**vars(builtins), "pickle.PicklingError": pickle.PicklingError}
    for name, base in bases.items():
        parent = getattr(errors, base[4:]) if base.startswith("sky.") else known[base]
        assert parent in getattr(errors, name).__mro__, name


# --- tables of arguments and options ---


def table(page: str, heading: str) -> list[list[str]]:
    """The names in the first column of the first table below a heading, row by row."""
    text = read(REPOSITORY / "docs" / page).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.search(r"^\| (?:Argument|Option) .*\n\|[-|]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    assert rows is not None, f"{page}: no table below {heading}"
    return [re.findall(r"`([^`]+)`", row.split(" | ")[0]) for row in rows[1].splitlines()]


def test_arguments_of_a_pool_are_all_there() -> None:
    listed = [name for row in table("api.md", "A pool") for name in row]
    assert sorted(listed) == sorted(inspect.signature(skyward.Compute).parameters)


def test_defaults_of_a_pool_are_right() -> None:
    """`Local()` and the like stand for the None that means them."""
    parameters = inspect.signature(skyward.Compute).parameters
    page = read(REPOSITORY / "docs" / "api.md").partition("\n## A pool\n")[2]
    rows = re.findall(r"^\| (`\w+`.*?) \| (`[^|]+`|\w+) \|", page, flags=re.MULTILINE)
    assert rows
    for names, default in rows:
        written = default.strip("`")
        value = None if re.fullmatch(r"[A-Z]\w+\(\)", written) else ast.literal_eval(written)
        for name in re.findall(r"`(\w+)`", names):
            assert parameters[name].default == value, name


def test_arguments_of_ssh_are_all_there() -> None:
    page = read(REPOSITORY / "docs" / "ssh.md")
    listed = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert sorted(listed) == sorted(inspect.signature(skyward.SSH).parameters)


def test_fields_of_values_are_all_there() -> None:
    page = read(REPOSITORY / "docs" / "api.md")
    for value in (skyward.Worker, skyward.Image):
        row = re.search(rf"^\| `sky\.{value.__name__}` \| (.*)$", page, flags=re.MULTILINE)
        assert row is not None
        fields = {field.name for field in dataclasses.fields(value) if field.init and not field.name.startswith("_")}
        assert fields <= set(re.findall(r"`(\w+)`", row[1])), value


@pytest.mark.parametrize("name", ["offers", "down", "runs", "run"])
def test_options_of_commands_are_all_there(name: str) -> None:
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    listed = {option for row in table("cli.md", f"skyward {name}") for option in row}
    assert listed == {option for option in options if option.startswith("-")}


def test_commands_of_skyward_exist() -> None:
    commands = set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    for page in PAGES:
        shell = "\n".join(re.findall(r"^```(?:ba)?sh\n(.*?)^```", read(page), flags=re.MULTILINE | re.DOTALL))
        named = re.findall(r"^skyward ([a-z]+)", "\n".join([*code(page), shell]), flags=re.MULTILINE)
        assert set(named) <= commands, name_of(page)
