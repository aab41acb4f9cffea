"""The packages of docs/architecture.md: imports point downward only, and stand at the top of their module.

It reads the source with `ast`, so it sees every import, also those that run in functions or for type checkers only.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.syntax import parsed

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "skyward"

# The layers of core, the lowest first. A package may import the layers below its own, and nothing of its own layer but
# itself; so there is no circle among packages, and no need to list their arrows.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("billing", "builtins_table", "guard", "interrupts", "labels", "scope", "system", "visible", "whoami"),
    ("errors", "tables"),
    ("gpus", "ioloop", "lock_files", "nesting", "settings", "volumes"),
    ("requirements",),
    ("image", "spec"),
    ("events",),
    ("interfaces", "status"),
    ("packages", "payload", "progress", "protocol", "registry", "tally"),
    ("facts", "nodes", "results"),
    ("audience", "blobs", "named_pools", "pool_arguments"),
    ("code", "files"),
    ("machines", "tasks"),  # which know nothing of each other
    ("function",),
    ("resume",),
    ("running_pool",),
    ("executor",),
    ("pool",),
)

# The packages above core, and what each may import of skyward besides itself. The longest name that fits is a module's.
MAY_IMPORT: dict[str, set[str]] = {
    "skyward": {"*"},  # the front door: every public name, lazily
    "skyward.core": set(),  # see LAYERS
    "skyward.worker": {  # what a node loads: of core's upper layers only what runs the calls of `@sky.compute`
        "skyward.core.errors",
        "skyward.core.function",
        "skyward.core.gpus",
        "skyward.core.payload",
        "skyward.core.protocol",
        "skyward.core.system",
        "skyward.core.whoami",
    },
    "skyward.providers": {
        "skyward.core.billing",
        "skyward.core.errors",
        "skyward.core.interfaces",
        "skyward.core.machines.offer_selection",  # what a request excludes need not be asked for
        "skyward.core.protocol.buckets",  # buckets as values
        "skyward.core.protocol.framing",  # how this machine's agents are started
        "skyward.core.protocol.messages",  # the file that a watchdog looks at
        "skyward.core.scope",
        "skyward.core.spec",
        "skyward.core.system",
        "skyward.core.volumes",
    },
    "skyward.providers.drivers": set(),  # they know libcloud, and nothing of skyward
    "skyward.transport": {
        "skyward.core.errors",
        "skyward.core.interfaces",
        "skyward.core.spec",
        "skyward.core.system",
    },
    "skyward.joblib_ext": {"skyward.core"},
    "skyward.integrations": {"skyward.core", "skyward.joblib_ext"},
    "skyward.plugins": {"skyward.core", "skyward.joblib_ext"},
    "skyward.console": {
        "skyward.console_cell",
        "skyward.console_live",
        "skyward.console_marimo",
        "skyward.core.events",
        "skyward.core.facts",
        "skyward.core.status",
        "skyward.core.tally",
        "skyward.core.visible",
    },
    "skyward.console_cell": {"skyward.core.progress", "skyward.core.status"},
    "skyward.console_live": set(),
    "skyward.console_marimo": {"skyward.core.progress", "skyward.core.status"},
    "skyward.dashboard": {
        "skyward.core.errors",
        "skyward.core.events",
        "skyward.core.facts",
        "skyward.core.gpus",
        "skyward.core.payload.exceptions",
        "skyward.core.status",
        "skyward.core.visible",
    },
    "skyward.cli": {"*"},
    "skyward.testing": {"skyward.core", "skyward.providers", "skyward.transport", "skyward.worker"},
}

# Pure modules decide and do not act: no socket, thread, clock, chance or log (design, decision 1).
PURE = (
    "skyward.core.protocol.message_checks",
    "skyward.core.protocol.states",
    "skyward.core.protocol.envelopes",
    "skyward.core.machines.budget",
    "skyward.core.machines.fleet",
    "skyward.core.machines.purse",
    "skyward.core.machines.fleet_reports",
    "skyward.core.machines.fleet_state",
    "skyward.core.machines.order_book",
    "skyward.core.machines.fleet_events",
    "skyward.core.protocol.framing",
    "skyward.core.protocol.mailbox",
    "skyward.core.protocol.manifest",
    "skyward.core.files.cut",
    "skyward.core.files.download_plan",
    "skyward.core.machines.forecast",
    "skyward.core.machines.offer_selection",
    "skyward.core.protocol.messages",
    "skyward.core.protocol.compression",
    "skyward.core.payload.exceptions",
    "skyward.core.protocol.transfers",
    "skyward.core.machines.refusals",
    "skyward.core.blobs.holdings",
    "skyward.core.code.bundles",
    "skyward.core.packages.imports",
    "skyward.core.code.places",
    "skyward.core.code.references",
    "skyward.core.blobs.relay",
    "skyward.core.resume.separately",
    "skyward.core.resume.identity",
    "skyward.core.resume.occurrences",
    "skyward.core.resume.packing",
    "skyward.core.resume.plan",
    "skyward.core.protocol.roll_call",
    "skyward.core.tasks.schedule",
    "skyward.core.tasks.schedule_events",
    "skyward.core.billing",
    "skyward.core.gpus",
    "skyward.core.scope",
    "skyward.core.nodes.node_reports",
    "skyward.core.progress",
    "skyward.core.status",
    "skyward.core.tally",
    "skyward.core.visible",
    "skyward.core.protocol.wire",
    "skyward.dashboard.access",
    "skyward.dashboard.blocks",
    "skyward.dashboard.feed",
    "skyward.providers.first_boot",
    "skyward.core.packages.closure",
    "skyward.core.nodes.link_breaks",
    "skyward.core.nodes.timing",
    "skyward.worker.forkserver.liveness",
    "skyward.worker.forkserver.seating",
    "skyward.worker.gpu_listing",
    "skyward.worker.gpu_shares",
    "skyward.worker.slot_table",
    "skyward.worker.forkserver.restarts",
)
IMPURE = {"asyncio", "logging", "os", "pathlib", "random", "secrets", "select", "selectors", "shutil", "socket"}
IMPURE |= {"subprocess", "tempfile", "threading", "time", "uuid"}

# Foreign packages that only some of ours may know.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "botocore": ("skyward.providers.drivers.aws_credentials", "skyward.providers.drivers.s3"),
    "asyncssh": ("skyward.transport", "skyward.providers"),
    "joblib": ("skyward.joblib_ext",),
    "libcloud": ("skyward.providers",),
    "requests": ("skyward.providers",),
    "tenacity": ("skyward.providers",),
    "numpy": ("skyward.core.payload.memory_maps", "skyward.core.results", "skyward.testing", "skyward.worker.slot"),
    "IPython": ("skyward.console_cell", "skyward.cli.magic"),
    "marimo": ("skyward.console_marimo",),
    "rich": ("skyward.console_live", "skyward.cli"),
    "sklearn": ("skyward.joblib_ext",),
    "starlette": ("skyward.dashboard",),
    "uvicorn": ("skyward.dashboard",),
}

# Imports inside functions: (module, what it imports) -> why it can't stand at the top.
LAZY: dict[tuple[str, str], str] = {
    ("skyward.integrations", "skyward.integrations.joblib"): "joblib is loaded when one of its names is asked for",
    ("skyward.cli.run", "skyward.cli.program"): "the other commands do without what pools need",
    (
        "skyward.providers.drivers.aws_credentials",
        "botocore",
    ): "0.1 s and 10 MB that are needed only for AWS without explicit keys",
    ("skyward.providers.drivers.aws_credentials", "botocore.config"): "as above",
    ("skyward.providers.drivers.s3", "botocore"): "as above",
    ("skyward.providers.drivers.aws_credentials", "botocore.session"): "as above",
    ("skyward", "skyward.cli.magic"): "needs IPython, which calls this",
    ("skyward.console", "skyward.console_cell"): "needs IPython, which only a notebook has",
    ("skyward.console", "skyward.console_marimo"): "needs marimo, which only its notebooks have",
    ("skyward.console", "skyward.console_live"): "needs rich, which only a terminal is worth",
    (
        "skyward.core.machines.ssh_keys",
        "cryptography.hazmat.primitives",
    ): "7 MB that only rented machines need",
    ("skyward.core.machines.ssh_keys", "cryptography.hazmat.primitives.asymmetric.ed25519"): "as above",
    (
        "skyward.core.protocol.compression",
        "zstandard",
    ): "a node may lack it, and an agent needs it for compressed pieces only",
    (
        "skyward.core.payload.memory_maps",
        "numpy",
    ): "an array's pickle needs it; the module must load where numpy is not installed",
    ("skyward.joblib_ext.active_pool", "skyward.joblib_ext.default_backend"): "a pool does not load joblib",
    ("skyward.core.nodes.connector", "skyward.core.nodes.bootstrap"): "nodes on this machine need none",
    ("skyward.core.pool", "skyward.core.running_pool"): "0.05 s in which the first nodes start as well",
    ("skyward.core.executor", "skyward.core.tasks.jobs"): "as above",
    ("skyward.core.executor", "skyward.core.tasks.kept_calls"): "as above",
    ("skyward.joblib_ext.plugin", "skyward.joblib_ext.activation"): "as above",
    ("skyward.providers.local", "platformdirs"): "as above",
    ("skyward.core.pool", "skyward.core.named_pools"): "5 ms for TOML that only pools by name need",
    ("skyward.core.visible", "html"): "2 ms for a table of entities that only notebooks need",
    ("skyward.core.pool_arguments", "skyward.core.results.names"): "5 ms that only results read as data need",
    ("skyward.core.pool", "skyward.core.packages.planner"): "8 MB that a pool on this machine does not need",
    (
        "skyward.core.machines.provision",
        "skyward.core.machines.buyer",
    ): "a pool that rents nothing does without SQLite and all that",
    (
        "skyward.core.running_pool",
        "skyward.core.resume.resuming",
    ): "a pool that keeps no results does without SQLite and all that",
    ("skyward.core.registry", "importlib.metadata"): "3 MB that our own providers do not need",
    ("skyward.core.requirements", "skyward.core.lock_files"): "4 MB that only projects with a lock file need",
    (
        "skyward.core.requirements",
        "importlib",
    ): "as above; an image that names none of our own requirements does not need it",
    ("skyward.core.tasks.missing_modules", "importlib"): "as above; only a pool with such a fault needs it",
    ("skyward.joblib_ext.computing", "joblib.func_inspect"): "a node may lack joblib",
    ("skyward.joblib_ext.computing", "joblib.logger"): "as above",
    ("skyward.joblib_ext.module_caches", "joblib.memory"): "slots have no use for it, and may lack it",
    ("skyward.joblib_ext.module_caches", "skyward.joblib_ext.cache_desk"): "as above",
    ("skyward.joblib_ext.module_caches", "skyward.joblib_ext.node_cache"): "as above",
    ("skyward.joblib_ext.module_caches", "skyward.joblib_ext.named_memory"): "as above",
    ("skyward.joblib_ext.plugin", "importlib"): "as above, for a pool on this machine",
    (
        "skyward.core.machines.node_life",
        "skyward.core.nodes.certificates",
    ): "x509 takes 15 ms, and a pool on this machine does without",
    ("skyward.core.machines.reaper", "skyward.core.machines.ledger"): "a reaper that has nothing to do stays small",
    ("skyward.core.machines.reaper", "skyward.core.machines.sweep"): "as above",
    ("skyward.worker.bridge", "multiprocessing"): "only a slot needs it, not the agent",
    ("skyward.worker.process", "ctypes"): "only where the kernel call is there",
    ("skyward.worker.process", "multiprocessing.process"): "only a slot needs it, not the agent",
    ("skyward.worker.leaks", "ctypes"): "only where the C library has the call",
    (
        "skyward.worker.file_service",
        "skyward.worker.bucket_volumes",
    ): "0.03 s of each agent's start, for http.client and email, that only pools with buckets need",
    ("skyward.worker.agent", "skyward.worker.forkserver.server"): "only an agent that forks others needs it",
    (
        "skyward.worker.forkserver.launch",
        "skyward.worker.forkserver.server",
    ): "only a fork of the agent needs it, not the agent",
    ("skyward.worker.forkserver.launch", "skyward.worker.slot"): "as above",
    ("skyward.worker.slot", "numpy"): "as in core.payload.memory_maps",
    (
        "skyward.worker.thread_limits",
        "threadpoolctl",
    ): "a node may lack it; then threads are limited by the environment only",
}


class Import(NamedTuple):
    module: str
    line: int
    target: str
    in_function: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def exists(name: str) -> bool:
    return name in MODULES


def targets(node: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = module.split(".") if is_package else module.split(".")[:-1]
        above = package[: len(package) - node.level + 1]
        base = ".".join([*above, base] if base else above)
    # `from skyward.core.protocol import wire` imports the module skyward.core.protocol.wire
    return [f"{base}.{alias.name}" if exists(f"{base}.{alias.name}") else base for alias in node.names]


def is_type_checking(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and "not" not in ast.unparse(node.test)
    )


def called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def walk(node: ast.AST, in_function: bool = False, for_types: bool = False) -> Iterator[tuple[ast.AST, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, in_function, for_types
        inside = in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from walk(child, inside, for_types or is_type_checking(child))


def imports_of(module: str, path: Path) -> Iterator[Import]:
    is_package = path.name == "__init__.py"
    for node, in_function, for_types in walk(parsed(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for target in dict.fromkeys(targets(node, module, is_package)):
                yield Import(module, node.lineno, target, in_function, for_types)
        elif isinstance(node, ast.Call) and called(node) == "import_module":
            for name in node.args[:1]:
                if isinstance(name, ast.Constant) and exists(name.value):
                    yield Import(module, node.lineno, name.value, in_function, for_types)


@functools.cache
def all_imports() -> list[Import]:
    return [found for module, path in MODULES.items() for found in imports_of(module, path)]


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer_of(module: str) -> tuple[int, str]:
    """Number and package of a module of core."""
    package = module.removeprefix("skyward.core.").split(".")[0]
    return next(((number, package) for number, packages in enumerate(LAYERS) if package in packages), (-1, package))


def is_core(module: str) -> bool:
    return within(module, "skyward.core") and module != "skyward.core"


def package_of(module: str) -> str:
    # `skyward` itself is only the package's __init__, not all that lies in it.
    if module == "skyward":
        return "skyward"
    return max(
        (package for package in MAY_IMPORT if package != "skyward" and within(module, package)), key=len, default=""
    )


def points_downward(found: Import) -> bool:
    package = package_of(found.module)
    if is_core(found.module) and is_core(found.target):
        (here, own), (there, other) = layer_of(found.module), layer_of(found.target)
        return own == other or there < here
    permitted = MAY_IMPORT.get(package, set())
    return "*" in permitted or any(within(found.target, name) for name in {package, *permitted})


def circle(imports: Iterable[Import]) -> list[str]:
    """Modules that import one another in a circle, if there are any."""
    edges: dict[str, set[str]] = {}
    for found in imports:
        if found.target != found.module:
            edges.setdefault(found.module, set()).add(found.target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for target in sorted(edges.get(module, ())):
                if through := visit(target, (*path, module)):
                    return through
            done.add(module)
        return []

    return next((through for module in edges if (through := visit(module, ()))), [])


def test_every_module_has_a_place() -> None:
    assert [module for module in MODULES if not package_of(module)] == [], "say in MAY_IMPORT what it may import"
    assert [module for module in MODULES if is_core(module) and layer_of(module)[0] < 0] == [], "put it on a layer"
    empty = [package for packages in LAYERS for package in packages if not exists(f"skyward.core.{package}")]
    assert empty == [], "LAYERS lists what is gone"


def test_imports_point_downward() -> None:
    """Those of functions and for type checkers too: what a reader must know of is what counts."""
    ours = [found for found in all_imports() if within(found.target, "skyward")]
    assert ours, "the test sees no import at all"
    assert [str(found) for found in ours if not points_downward(found)] == []


def test_modules_have_no_circle() -> None:
    """Nor one that is closed by an import in a function or for type checkers."""
    # The front door's imports for type checkers name everything; nobody below imports the front door.
    assert circle(found for found in all_imports() if found.target in MODULES and found.module != "skyward") == []
    assert [str(found) for found in all_imports() if found.target == "skyward" and found.module != "skyward.cli"] == []


def test_nothing_that_ships_imports_tests() -> None:
    outside = ("tests", "benchmarks", "examples", "contrib")
    assert [str(found) for found in all_imports() if found.target.split(".")[0] in outside] == []


def test_foreign_packages_stay_in_their_packages() -> None:
    wrong = [
        str(found)
        for found in all_imports()
        for foreign, homes in ONLY_IN.items()
        if within(found.target, foreign) and not any(within(found.module, home) for home in homes)
    ]
    assert wrong == []


def test_foreign_packages_are_declared() -> None:
    """What is imported is of the standard library or stands in pyproject.toml, so a fresh install has it."""
    declared = {"asyncssh", "botocore", "cloudpickle", "cryptography", "joblib", "libcloud", "msgpack", "platformdirs"}
    declared |= {"packaging", "requests", "rich", "tenacity", "threadpoolctl", "typer", "uv", "xxhash", "zstandard"}
    optional = {"IPython", "numpy", "sklearn"}  # come with the user's own code
    optional |= {"marimo"}  # runs the program that imports us
    optional |= {"starlette", "uvicorn"}  # the extra [dashboard], without which nothing imports what needs them
    suites = {"hypothesis", "numpy", "pytest"}  # skyward.testing is for those who have them
    known = sys.stdlib_module_names | declared | optional | {"skyward"}
    wrong = [
        str(found)
        for found in all_imports()
        if (top := found.target.split(".")[0]) not in known
        and not (within(found.module, "skyward.testing") and top in suites)
    ]
    assert wrong == []


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_nothing_that_acts(module: str) -> None:
    assert exists(module), "PURE lists what is gone"
    found = [str(item) for item in all_imports() if item.module == module and item.target.split(".")[0] in IMPURE]
    assert found == []


def test_imports_stand_at_the_top() -> None:
    """An import in a function hides what a module needs, and often a cycle; each one has its reason in LAZY."""
    inside = {(found.module, found.target): found for found in all_imports() if found.in_function}
    assert [str(found) for key, found in inside.items() if key not in LAZY] == []
    assert [key for key in LAZY if key not in inside] == [], "LAZY lists what is gone"


def planted(tmp_path: Path, module: str, source: str) -> list[Import]:
    path = tmp_path / "planted.py"
    path.write_text(source)
    return list(imports_of(module, path))


def test_every_kind_of_import_is_seen(tmp_path: Path) -> None:
    source = (
        "if TYPE_CHECKING:\n    import joblib\n\n"
        "def f():\n    from . import wire\n    from .wire import Run\n"
        "    importlib.import_module('skyward.core.spec')\n"
    )
    assert [tuple(found[2:]) for found in planted(tmp_path, "skyward.core.protocol.x", source)] == [
        ("joblib", False, True),
        ("skyward.core.protocol.wire", True, False),
        ("skyward.core.protocol.wire", True, False),
        ("skyward.core.spec", True, False),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "from skyward.core.tasks import dispatch\n",
        "if TYPE_CHECKING:\n    from skyward.core.tasks.dispatch import Dispatcher\n",
        "def f():\n    import skyward.core.tasks.dispatch\n",
    ],
    ids=["at the top", "for type checkers", "in a function"],
)
def test_a_planted_fault_is_found(tmp_path: Path, source: str) -> None:
    upward = planted(tmp_path, "skyward.core.nodes.session", source)
    assert [points_downward(found) for found in upward] == [False]
    found = [found for found in all_imports() if found.target in MODULES and found.module != "skyward"]
    assert "skyward.core.nodes.session" in circle([*found, *upward])
