"""Source lines in the tracebacks of functions that were sent by value: of notebook cells, scripts and lambdas.

A node has no source of these, or a file of that name with another content. So it leaves their lines out and sends where
they were and a fingerprint of the code; the driver, which has the source, writes them in. It does so only where the
source compiles to code of that fingerprint: after an edit, or if another cell has the same name by now, a line is
missing, and never a wrong one shown.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
import re
import stat
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["SourcePlace", "fill", "formatted", "read_places"]

_MAX_PLACES = 100
_MAX_BYTES = 10_000_000  # of a source file
_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, as notebooks compile cells
_FRAME = re.compile(r'(?P<margin>[ |]*)  File "(?P<file>[^\n]*)", line (?P<line>\d+), in (?P<name>[^\n]*)')


class SourcePlace(NamedTuple):
    """Where in a traceback a line is missing."""

    file: str
    line: int
    name: str
    first: int  # line of the code object
    code: bytes  # its fingerprint
    columns: tuple[int, int]  # in bytes; empty if the expression has several lines


def fingerprint(code: types.CodeType) -> bytes:
    """Return what distinguishes a code object from one that was edited, also if lines were only moved."""
    digest = hashlib.blake2b(digest_size=16)
    todo: list[Any] = [code]
    while todo:
        part = todo.pop()
        if isinstance(part, types.CodeType):
            digest.update(part.co_code)
            digest.update(part.co_linetable)
            digest.update(repr((part.co_names, part.co_varnames)).encode("utf-8", "surrogatepass"))
            todo += part.co_consts
        elif isinstance(part, frozenset):
            todo += sorted(map(repr, part))
        else:
            digest.update(repr(part).encode("utf-8", "surrogatepass"))
    return digest.digest()


# --- on a node ------------------------------------------------------------------------------------------------------


def formatted(error: BaseException) -> tuple[str, list[SourcePlace]]:
    """Return the traceback as text, and where lines are missing that the driver may have."""
    places = {(place.file, place.line, place.name): place for place in _places(error)}
    whole = traceback.TracebackException.from_exception(error, compact=True)
    todo = [whole]
    while todo:
        part = todo.pop()
        todo += [other for other in (part.__cause__, part.__context__, *(part.exceptions or ())) if other is not None]
        for index, frame in enumerate(part.stack):
            if (frame.filename, frame.lineno, frame.name) in places:
                part.stack[index] = traceback.FrameSummary(
                    frame.filename, frame.lineno, frame.name, lookup_line=False, line=""
                )
    return "".join(whole.format()), list(places.values())


def _places(error: BaseException) -> Iterator[SourcePlace]:
    count = 0
    for trace in _traces(error):
        code = trace.tb_frame.f_code
        line = trace.tb_lineno or 0  # it may be None
        sent = trace.tb_frame.f_globals.get("__name__") == "__main__"
        if sent or not linecache.getline(code.co_filename, line, trace.tb_frame.f_globals):
            count += 1
            if count > _MAX_PLACES:
                return
            yield SourcePlace(
                code.co_filename, line, code.co_name, code.co_firstlineno, fingerprint(code), _columns(trace)
            )


def _traces(error: BaseException) -> Iterator[types.TracebackType]:
    seen: set[int] = set()
    todo: list[BaseException] = [error]
    while todo:
        link = todo.pop()
        if id(link) in seen:
            continue
        seen.add(id(link))
        todo += [other for other in (link.__cause__, link.__context__) if other is not None]
        if isinstance(link, BaseExceptionGroup):
            todo += link.exceptions
        trace = link.__traceback__
        while trace is not None:
            yield trace
            trace = trace.tb_next


def _columns(trace: types.TracebackType) -> tuple[int, int]:
    for index, (line, end_line, begin, end) in enumerate(trace.tb_frame.f_code.co_positions()):
        if index == trace.tb_lasti // 2:
            return (begin, end) if line == end_line and begin is not None and end is not None else (0, 0)
    return 0, 0


# --- in the driver --------------------------------------------------------------------------------------------------


def read_places(places: Any) -> list[SourcePlace]:
    """Read what a node has sent, which may be anything."""
    kinds = [str, int, str, int, bytes, tuple]
    if type(places) is not list or len(places) > _MAX_PLACES:
        return []
    good = [p for p in places if type(p) is tuple and [type(part) for part in p] == kinds]
    return [SourcePlace(*place) for place in good if [type(column) for column in place[5]] == [int, int]]


def fill(text: str, places: Sequence[SourcePlace]) -> str:
    """Write the missing lines into a traceback, as far as they are known for certain. Never raises."""
    if not places:
        return text
    known = {(place.file, str(place.line), place.name): place for place in places}
    lines = text.split("\n")
    filled: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        filled.append(line)
        frame = _FRAME.fullmatch(line)
        if frame is None or following.startswith(f"{frame['margin']}    "):
            continue
        place = known.get((frame["file"], frame["line"], frame["name"]))
        if place is not None:
            filled += [f"{frame['margin']}    {shown}" for shown in _shown(place)]
    return "\n".join(filled)


def _shown(place: SourcePlace) -> list[str]:
    source = _source(place.file)
    if (place.first, place.name, place.code) not in _codes(place.file, source):
        return []
    line = source[place.line - 1].rstrip() if 0 < place.line <= len(source) else ""
    bare = line.lstrip()
    begin, end = (len(line.encode()[:column].decode(errors="replace")) for column in place.columns)
    indent = len(line) - len(bare)
    if not bare or not indent <= begin < end <= len(line) or end - begin == len(bare):
        return [bare] if bare else []
    return [bare, " " * (begin - indent) + "^" * (end - begin)]


def _source(file: str) -> tuple[str, ...]:
    """Return the lines of a source that this process has run, or of a regular file; a node may have named any."""
    try:
        linecache.checkcache(file)
        if not linecache.cache.get(file):
            status = Path(file).stat()
            if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= _MAX_BYTES:
                return ()
        return tuple(linecache.getlines(file))
    except (OSError, ValueError):
        return ()


@functools.lru_cache(maxsize=16)
def _codes(file: str, source: tuple[str, ...]) -> frozenset[tuple[int, str, bytes]]:
    """Return first line, name and fingerprint of all code objects of a source."""
    try:
        todo = [compile("".join(source), file, "exec", _AWAIT, dont_inherit=True)] if source else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    found = set()
    while todo:
        code = todo.pop()
        found.add((code.co_firstlineno, code.co_name, fingerprint(code)))
        todo += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return frozenset(found)
