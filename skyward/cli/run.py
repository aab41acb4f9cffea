"""``skyward run``: runs a program as Python would, with a pool as joblib's default backend."""

from __future__ import annotations

import builtins
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.abc import InspectLoader
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Annotated, Any

import typer

from skyward.cli.sources import NamedProviders, named
from skyward.core import named_pools
from skyward.core.errors import ConfigError, SkywardError
from skyward.core.pool import Compute
from skyward.joblib_ext.plugin import JoblibPlugin, SklearnPlugin

__all__ = ["ProgramEnded", "run"]

_INTERRUPTED = 130


class ProgramEnded(SystemExit):
    """The program's own end, with its exit status."""


def run(
    program: Annotated[list[str], typer.Argument(help="The script, and its arguments.", metavar="PROGRAM [ARG]")],
    module: Annotated[bool, typer.Option("-m", help="PROGRAM is the name of a module, as with `python -m`.")] = False,
    pool: Annotated[str | None, typer.Option(help="A pool that pyproject.toml or config.toml describes.")] = None,
    provider: NamedProviders = None,
    nodes: Annotated[str | None, typer.Option(help="How many machines; 2-10 begins with 2.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Slots per machine.")] = None,
    machine: Annotated[str | None, typer.Option(help="Exactly this type.")] = None,
    accelerator: Annotated[str | None, typer.Option("--gpu", "--accelerator", help="Such as A100 or H100:8.")] = None,
    vcpus: Annotated[int | None, typer.Option(help="At least so many cores per machine.")] = None,
    memory: Annotated[str | None, typer.Option(help="At least so much per machine, such as 32GB.")] = None,
    max_price: Annotated[float | None, typer.Option(help="At most so many USD per machine and hour.")] = None,
    budget: Annotated[float | None, typer.Option(help="At most so many USD in all.")] = None,
    resume: Annotated[str | None, typer.Option(help="A file that keeps results; run again to go on.")] = None,
) -> None:
    """Run a program unchanged, with a pool as the default backend of joblib's Parallel."""
    given = {
        "provider": [source.provider for source in named(provider)] if provider else None,
        "nodes": _nodes(nodes),
        "concurrency": concurrency,
        "machine": machine,
        "accelerator": accelerator,
        "vcpus": vcpus,
        "memory": memory,
        "max_price": max_price,
        "budget": budget,
        "resume": resume,
    }
    arguments = _arguments(pool, {name: value for name, value in given.items() if value is not None})
    main, code = (_module if module else _script)(program[0])
    sys.argv[:] = [main.__file__ or program[0], *program[1:]]
    sys.modules["__main__"] = main  # before the pool is opened, which looks at what the program will need
    raise ProgramEnded(_execute(main, code, Compute(**arguments)))


def _nodes(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    low, dash, high = text.partition("-")
    try:
        return (int(low), int(high)) if dash else int(low)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor MIN-MAX", param_hint="--nodes") from None


def _arguments(name: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the pool: those of the file, and what the command line says."""
    known = inspect.signature(Compute).parameters
    arguments = named_pools.arguments(name, known) if name is not None else {}
    if not {"provider", "concurrency", "worker"} & {*arguments, *given}:
        given = {"concurrency": _cores(), **given}  # as many processes as joblib itself would start
    if "concurrency" in given and (worker := arguments.pop("worker", None)) is not None:
        given = {**given, "worker": replace(worker, concurrency=given["concurrency"])}
        del given["concurrency"]
    plugins = list(arguments.get("plugins", ()))
    if not any(isinstance(plugin, (JoblibPlugin, SklearnPlugin)) for plugin in plugins):
        plugins.append(JoblibPlugin())
    return {**arguments, **given, "plugins": plugins}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _script(path: str) -> tuple[ModuleType, CodeType]:
    """Make a ``__main__`` for a script, and compile it."""
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}; for a module, write -m") from error
    main = ModuleType("__main__")
    main.__file__ = path
    main.__loader__ = SourceFileLoader("__main__", path)
    main.__dict__.update(__cached__=None, __builtins__=builtins)
    sys.path[0] = str(Path(path).resolve().parent)
    return main, _compiled(lambda: compile(source, path, "exec"))


def _module(name: str) -> tuple[ModuleType, CodeType]:
    """Make a ``__main__`` for a module that is found as imports are, or for a package's ``__main__``."""
    sys.path[0] = os.getcwd()
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, ValueError) as error:
        raise ConfigError(f"no module {name!r} can be run: {error}") from error
    loader = None if spec is None else spec.loader
    if spec is None or not isinstance(loader, InspectLoader):
        raise ConfigError(f"no module {name!r} can be run; is it spelled right, and does it lie in {os.getcwd()}?")
    code = _compiled(lambda: loader.get_code(spec.name))
    main = ModuleType("__main__")
    main.__file__ = spec.origin
    main.__dict__.update(
        __cached__=spec.cached, __builtins__=builtins, __loader__=loader, __package__=spec.parent, __spec__=spec
    )
    return main, code


def _compiled(make: Callable[[], CodeType | None]) -> CodeType:
    try:
        code = make()
    except SyntaxError as error:
        sys.excepthook(type(error), error.with_traceback(None), None)
        raise ProgramEnded(1) from None
    if code is None:
        raise ConfigError("this module has no Python code")
    return code


def _execute(main: ModuleType, code: CodeType, pool: Compute) -> object:
    """Run the program inside the pool's block; returns its exit status, as `sys.exit` takes it."""
    try:
        with pool:
            try:
                exec(code, main.__dict__)  # noqa: S102 - that is what the user asks for
            except SystemExit as end:
                if end.code not in (None, 0):
                    raise
        return None
    except SystemExit as end:
        return end.code
    except SkywardError as error:
        if not _is_of(error.__traceback__, code):  # the pool could not be opened
            raise
        return _reported(error, code)
    except BaseException as error:
        return _reported(error, code)


def _reported(error: BaseException, code: CodeType) -> int:
    """Show an exception as Python would, without our frames; returns the exit status."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not code:
        trace = trace.tb_next
    error.__traceback__ = trace or error.__traceback__  # which Python's own hook shows, whatever it is given
    sys.excepthook(type(error), error, error.__traceback__)
    return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _is_of(trace: TracebackType | None, code: CodeType) -> bool:
    while trace is not None:
        if trace.tb_frame.f_code is code:
            return True
        trace = trace.tb_next
    return False
