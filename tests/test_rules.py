"""The rules of CONTRIBUTING.md that a program can check: sizes, names, docstrings, and that tests mirror modules.

Each rule has a table of exceptions with their reasons, and fails as well when one of them is no longer needed.
"""

from __future__ import annotations

import ast
import collections
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.syntax import nodes, parsed

REPOSITORY = Path(__file__).resolve().parents[1]

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Definition(NamedTuple):
    name: str
    """``path.py:Class.method``"""
    node: ast.ClassDef | Function
    inside: ast.AST
    """What it is defined in: a module, a class or a function."""


@functools.cache
def sources() -> dict[str, str]:
    """Modules of the package, under their paths in it."""
    package = REPOSITORY / "skyward"
    return {str(path.relative_to(package)): path.read_text("utf-8") for path in sorted(package.rglob("*.py"))}


@functools.cache
def definitions(path: str, source: str) -> list[Definition]:
    def search(node: ast.AST, inside: ast.AST, name: str) -> Iterator[Definition]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | Function):
                own = f"{name}{'.' if ':' in name else ':'}{child.name}"
                yield Definition(own, child, inside)
                yield from search(child, child, own)
            else:
                yield from search(child, inside, name)

    module = parsed(source)
    return list(search(module, module, path))


def functions(modules: Mapping[str, str]) -> Iterator[tuple[Definition, Function]]:
    for path, source in modules.items():
        yield from ((item, item.node) for item in definitions(path, source) if isinstance(item.node, Function))


def classes(modules: Mapping[str, str]) -> Iterator[tuple[Definition, ast.ClassDef]]:
    for path, source in modules.items():
        yield from ((item, item.node) for item in definitions(path, source) if isinstance(item.node, ast.ClassDef))


def lines(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def compare(found: Mapping[str, str], exceptions: Mapping[str, str]) -> None:
    broken = [f"{name}: {what}" for name, what in found.items() if name not in exceptions]
    assert not broken, "\n".join(["", *broken])
    assert [name for name in exceptions if name not in found] == [], "these exceptions are no longer needed"


# --- a function has at most 40 lines, its docstring aside ---

LONG_FUNCTIONS: dict[str, str] = {
    "core/pool.py:Compute.__init__": "its signature is the promised API: as many lines as arguments",
}


def long_functions(modules: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for item, node in functions(modules):
        count = lines(node) - (lines(node.body[0]) if ast.get_docstring(node) is not None else 0)
        if count > 40:
            found[item.name] = f"{count} lines"
    return found


def test_functions_are_short() -> None:
    compare(long_functions(sources()), LONG_FUNCTIONS)


# --- a module has at most 600 lines ---

LONG_MODULES: dict[str, str] = {}


def long_modules(modules: Mapping[str, str]) -> dict[str, str]:
    counts = {path: len(source.splitlines()) for path, source in modules.items()}
    return {path: f"{count} lines" for path, count in counts.items() if count > 600}


def test_modules_are_short() -> None:
    compare(long_modules(sources()), LONG_MODULES)


# --- a class has at most 25 methods, properties included ---

LARGE_CLASSES: dict[str, tuple[int, str]] = {
    # At most so many methods, and why.
    "core/protocol/wire.py:Wire": (36, "one state machine for both ends, whose two halves share all their state"),
    "testing/transport.py:TransportConformance": (26, "a suite: each method is a test"),
    "worker/slot_table.py:SlotTable": (34, "one state machine: an event has a method each"),
}


def large_classes(modules: Mapping[str, str]) -> dict[str, int]:
    counts = {
        item.name: len({method.name for method in node.body if isinstance(method, Function)})
        for item, node in classes(modules)
    }
    return {name: count for name, count in counts.items() if count > 25}


def test_classes_have_few_methods() -> None:
    found = large_classes(sources())
    reasons = {name: reason for name, (_, reason) in LARGE_CLASSES.items()}
    compare({name: f"{count} methods" for name, count in found.items()}, reasons)
    bounds = {name: bound for name, (bound, _) in LARGE_CLASSES.items()}
    assert {name: found[name] for name in bounds} == bounds, "lower the bound of a class that shrinks; none grows"


# --- no two classes have the same name ---

SAME_NAMES: dict[str, str] = {
    "Began": "the message, and what the schedule makes of it",
    "Fetch": "the message, and the relay's command that becomes it",
    "Recall": "the message, and the schedule's command that becomes it",
    "Returned": "the message, and what the schedule makes of it",
    "Run": "the message, and the schedule's command that becomes it",
    "Settle": "the same command, of the driver's schedule and of the worker's table of slots",
    "Start": "the arguments of an agent, and the command to start a task",
}


def same_names(modules: Mapping[str, str]) -> dict[str, str]:
    places = collections.defaultdict(list)
    for item, node in classes(modules):
        places[node.name].append(item.name)
    return {name: " and ".join(found) for name, found in places.items() if len(found) > 1}


def test_classes_have_names_of_their_own() -> None:
    compare(same_names(sources()), SAME_NAMES)


# --- skyward/a/b.py is tested in tests/a/test_b.py ---

ONLY_NAMES = "only types, tables or names, which the tests of their users read"
NO_TEST_FILE: dict[str, str] = {
    # Where a module has no test file of its own: the one that covers it, or why none does.
    "core/machines/fleet_events.py": ONLY_NAMES,
    "core/files/node_files.py": "tests/test_volumes.py",
    "core/machines/plan.py": ONLY_NAMES,
    "core/status.py": "tests/core/test_pool_gpus.py",
    "core/tasks/jobs.py": ONLY_NAMES,
    "core/tasks/pool_context.py": ONLY_NAMES,
    "core/tasks/schedule_events.py": ONLY_NAMES,
    "core/tasks/several_calls.py": "tests/core/resume/test_separately.py",
    "integrations/joblib.py": "tests/integrations/test_seeds.py",
    "joblib_ext/activation.py": "tests/joblib_ext/test_pools.py",
    "joblib_ext/call.py": "tests/joblib_ext/test_backend.py",
    "joblib_ext/callbacks.py": "tests/integrations/test_sklearn.py",
    "joblib_ext/node.py": "tests/joblib_ext/test_backend.py",
    "joblib_ext/plugin.py": "tests/joblib_ext/test_pools.py",
    "providers/drivers/ec2_values.py": "tests/providers/drivers/test_ec2.py",
    "providers/drivers/ec2_wire.py": "tests/providers/drivers/test_ec2.py",
    "providers/drivers/json_api.py": "tests/providers/drivers/test_verda.py",
    "providers/drivers/vastai_connection.py": "tests/providers/drivers/test_vastai.py",
    "providers/drivers/verda_connection.py": "tests/providers/drivers/test_verda.py",
    "providers/libcloud_profiles.py": "tests/providers/test_libcloud.py",
    "testing/account.py": "tests/testing/test_provider.py",
    "testing/service.py": "tests/transport/test_memory.py",
    "testing/transport.py": "tests/transport/test_memory.py",
    "worker/file_service.py": "tests/core/files/test_supply.py",
    "worker/forkserver/protocol.py": "tests/worker/forkserver/test_server.py",
    "worker/slot_pool.py": "tests/worker/test_agent.py",
    "worker/thread_limits.py": "tests/worker/test_slot.py",
}


def no_test_file(modules: Mapping[str, str], tests: Path) -> dict[str, str]:
    mirrors = {path: Path(path).with_name(f"test_{Path(path).name}") for path in modules if "__" not in path}
    return {path: f"there is no tests/{mirror}" for path, mirror in mirrors.items() if not (tests / mirror).exists()}


def test_tests_mirror_modules() -> None:
    compare(no_test_file(sources(), REPOSITORY / "tests"), NO_TEST_FILE)
    named = {reason for reason in NO_TEST_FILE.values() if reason != ONLY_NAMES}
    assert [path for path in sorted(named) if not (REPOSITORY / path).exists()] == []


# --- what is public and takes three parameters or more describes each of them in a section "Parameters" ---

OPTIONS = "a command: the options describe themselves to --help"
UNDESCRIBED: dict[str, str] = {
    "cli/doctor.py:run": OPTIONS,
    "cli/down.py:run": OPTIONS,
    "cli/offers.py:run": OPTIONS,
    "cli/run.py:run": OPTIONS,
    "cli/runs.py:run": OPTIONS,
    "cli/ssh.py:run": OPTIONS,
}


def parameters_of(node: ast.ClassDef | Function, method: bool) -> list[str]:
    """Names of what a caller may give, ``*args`` aside; a class is called with what its __init__ takes.

    One whose __init__ is made for it (a dataclass, a NamedTuple) has its fields as attributes, and describes those.
    """
    if isinstance(node, ast.ClassDef):
        made = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        return parameters_of(made[-1], method=True) if made else []
    bound = method and not any(ast.unparse(item) == "staticmethod" for item in node.decorator_list)
    return [item.arg for item in [*[*node.args.posonlyargs, *node.args.args][bound:], *node.args.kwonlyargs]]


def is_public(item: Definition) -> bool:
    """Whether others call it by its name; tests in skyward.testing and overloads are none of it."""
    overload = any(ast.unparse(decorator).endswith("overload") for decorator in item.node.decorator_list)
    hidden = re.search(r"(^|[/:.])(_|test_)", item.name.replace("__init__.py", ""))
    return not (overload or hidden or isinstance(item.inside, Function))


def undescribed(modules: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for item, node in [*functions(modules), *classes(modules)]:
        parameters = parameters_of(node, isinstance(item.inside, ast.ClassDef))
        if len(parameters) > 2 and is_public(item):
            docstring = ast.get_docstring(node) or ""
            section = re.search(r"^Parameters\n-+\n(.*?)(\n\n\w+\n-+\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
            heads = re.findall(r"^\S[^:\n]*", section[1] if section else "", re.MULTILINE)
            missing = set(parameters) - set(re.findall(r"\w+", " ".join(heads)))
            if missing:
                found[item.name] = f"says nothing of {', '.join(sorted(missing))}"
    return found


def test_parameters_are_described() -> None:
    compare(undescribed(sources()), UNDESCRIBED)


# --- a lock has a comment that says what it guards; a thread has a name; an ignored rule of ruff has its reason ---


def calls(modules: Mapping[str, str]) -> Iterator[tuple[str, str, ast.Call]]:
    """Path, name of what is called, call."""
    for path, source in modules.items():
        for node in nodes(source):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                yield path, node.func.id if isinstance(node.func, ast.Name) else node.func.attr, node


def locks_without_comment(modules: Mapping[str, str]) -> list[str]:
    made = [(path, node.lineno) for path, name, node in calls(modules) if name in {"Lock", "RLock"} and not node.args]
    around = {(path, line): modules[path].splitlines()[max(0, line - 2) : line] for path, line in made}
    return [
        f"{path}:{line}"
        for (path, line), (*above, own) in around.items()
        if "#" not in own and not any(text.lstrip().startswith("#") for text in above)
    ]


def threads_without_name(modules: Mapping[str, str]) -> list[str]:
    wanted = {"Thread": ("name", 3), "ThreadPoolExecutor": ("thread_name_prefix", 2)}
    return [
        f"{path}:{node.lineno}"
        for path, name, node in calls(modules)
        if name in wanted
        and wanted[name][0] not in {keyword.arg for keyword in node.keywords}
        and len(node.args) < wanted[name][1]
    ]


def test_locks_have_a_comment() -> None:
    assert locks_without_comment(sources()) == []


def test_threads_have_names() -> None:
    assert threads_without_name(sources()) == []


def test_ignored_rules_have_reasons() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    assert [line for line in re.findall(r'^  "[A-Z]+[0-9]*",.*$', text, re.MULTILINE) if "#" not in line] == []


# --- the rules see what they should ---


def test_the_rules_see_what_breaks_them(tmp_path: Path) -> None:
    section = "    Parameters\n    ----------\n    a, b\n        Things.\n"
    planted = {
        "a.py": "class A:\n  def long(self):\n    '''Two\n    lines.'''\n" + "    pass\n" * 40,
        "b.py": "class A: pass\n" + "#\n" * 600,
        "c.py": "class C:\n" + "".join(f"  def m{n}(self): pass\n" for n in range(26)),
        "d.py": f"def f(a, *, b, c, **d):\n    '''Do.\n\n{section}    '''\n"
        f"def g(a, b, c):\n    '''Do.\n\n{section}    c : int\n        It.\n\n    Raises\n    ------\n    E\n    '''\n"
        "def _h(a, b, c): pass\n" + "def short():\n" + "    pass\n" * 39,
    }
    (tmp_path / "test_a.py").touch()
    assert long_functions(planted) == {"a.py:A.long": "41 lines"}
    assert long_modules(planted) == {"b.py": "601 lines"}
    assert large_classes(planted) == {"c.py:C": 26}
    assert same_names(planted) == {"A": "a.py:A and b.py:A"}
    assert set(no_test_file(planted, tmp_path)) == {"b.py", "c.py", "d.py"}
    planted["e.py"] = (
        "import threading\na = threading.Lock()\n# of x\nb = Lock()\nc = Lock()  # of y\nd = Thread(None, f)\n"
    )
    assert locks_without_comment(planted) == ["e.py:2"]
    assert threads_without_name(planted) == ["e.py:6"]
    assert undescribed(planted) == {"d.py:f": "says nothing of c"}
