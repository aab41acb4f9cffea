"""Runs a program as Python would, inside a pool's block; see `skyward.cli.run`."""

from __future__ import annotations

import builtins
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import InspectLoader
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from skyward.core import named_pools
from skyward.core.errors import ConfigError, SkywardError
from skyward.core.pool import Compute
from skyward.core.system.machine import core_count
from skyward.joblib_ext.plugin import JoblibPlugin, SklearnPlugin

__all__ = ["make_pool", "run"]

_INTERRUPTED = 130


class _NoProgram(Exception):
    """The program can't be compiled; the error has been shown."""


def run(program: Sequence[str], module: bool, pool: str | None, given: dict[str, Any]) -> object:
    """Run a program with a pool for its `Parallel` calls.

    Parameters
    ----------
    program
        The script, or the name of a module, and its arguments.
    module
        Whether it is a module.
    pool
        Name of a pool that a file describes.
    given
        Arguments of `Compute`.

    Returns
    -------
    object
        The program's exit status, as `sys.exit` takes it.
    """
    opened = make_pool(pool, given)
    try:
        main, code = (_module if module else _script)(program[0])
    except _NoProgram:
        return 1
    sys.argv[:] = [(module and main.__file__) or program[0], *program[1:]]
    # Child processes of multiprocessing look up what it defines under the other name. Set before the pool is opened,
    # which looks at what the program will need.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    return _execute(main, code, opened)


def make_pool(name: str | None, given: dict[str, Any]) -> Compute:
    """Create the named pool, or one that no file describes. Arguments of the command line override the file's."""
    with named_pools.described(name):
        return Compute(**_arguments(name, given))


def _arguments(name: str | None, given: dict[str, Any]) -> dict[str, Any]:
    if name is not None:
        arguments = named_pools.arguments(name, inspect.signature(Compute).parameters, given)
    else:
        arguments = dict(given)
    if not {"provider", "concurrency", "worker"} & arguments.keys():
        arguments["concurrency"] = core_count()  # as many processes as joblib itself would start
    plugins = list(arguments.get("plugins", ()))
    if not any(isinstance(plugin, (JoblibPlugin, SklearnPlugin)) for plugin in plugins):
        plugins.append(JoblibPlugin())
    return {**arguments, "plugins": plugins}


def _script(path: str) -> tuple[ModuleType, CodeType]:
    """Make a ``__main__`` for a script, and compile it."""
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}; for a module, write -m") from error
    path = os.path.abspath(path)
    main = ModuleType("__main__")
    main.__file__ = path
    main.__loader__ = SourceFileLoader("__main__", path)
    main.__dict__.update(__cached__=None, __builtins__=builtins)
    sys.path[0] = str(Path(path).resolve().parent)
    return main, _compiled(lambda: compile(source, path, "exec", dont_inherit=True))


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
        raise ConfigError(f"no module {name!r} can be run; is it spelled right, and is it in {os.getcwd()}?")
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
        raise _NoProgram from None
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
    error.__traceback__ = trace or error.__traceback__  # Python's own hook shows this, whatever it is given
    sys.excepthook(type(error), error, error.__traceback__)
    return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _is_of(trace: TracebackType | None, code: CodeType) -> bool:
    while trace is not None:
        if trace.tb_frame.f_code is code:
            return True
        trace = trace.tb_next
    return False
