"""One run with a resume file: which of its calls are known, and what becomes of the results of the others.

Whatever goes wrong with the file after the run has begun costs time and not results: what can't be read is computed
again, what can't be written is still handed over, and both are reported.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from skyward.core.code.local_code import CodeVersion, LocalCode
from skyward.core.errors import SkywardError
from skyward.core.labels import label as label_of
from skyward.core.resume.code_view import CodeView
from skyward.core.resume.identity import Hasher
from skyward.core.resume.occurrences import Occurrences, lane_of
from skyward.core.resume.origins import ModuleOrigins
from skyward.core.resume.plan import CallPlan
from skyward.core.resume.store import NewResult, ResultStore
from skyward.core.tasks.jobs import TaskGroup
from skyward.core.tasks.several_calls import Call, NoIdentity, SeveralCalls

__all__ = ["Computed", "Journal", "Read", "Submission"]

Read = Callable[[Sequence[Any]], tuple[Any, BaseException | None]]
"""Turns the pickle and the buffers of a result into its value, or the reason why that is not accepted."""

Say = Callable[[str, bool], None]

_UNSTORED = "the results of some calls are not stored, since"
_LOOKS = 100  # at the code, until it stays as it is for a moment
_PYTHON = b"%d.%d" % sys.version_info[:2]
_PLACEHOLDER: object = getattr(functools, "Placeholder", object())  # since Python 3.14


@dataclass(frozen=True, slots=True)
class Submission:
    """A task that is about to be submitted.

    Attributes
    ----------
    plan
        What of it is known.
    rows
        For each call that is to be computed, the name of its function, the digest of its code, and its place.
    content
        Digests of large arrays in it whose contents may not have been read.
    origins, generation, version
        The state of the user's own code that the keys are about; see `CodeView`.
    """

    plan: CallPlan
    rows: Sequence[tuple[str, bytes, int]]
    content: frozenset[bytes]
    origins: ModuleOrigins
    generation: int
    version: CodeVersion | None


@dataclass(frozen=True, slots=True)
class Computed:
    """A result that was computed.

    Attributes
    ----------
    result
        The result.
    submission
        That of its task.
    code
        The version of the code that the task ran with.
    matches
        Whether the arrays that were sent are those that the keys are about.
    """

    result: NewResult
    submission: Submission
    code: CodeVersion | None
    matches: bool


class _Identified(NamedTuple):
    """For each call of a task, the name of its function, the digest of its code, and its own; and see `Submission`."""

    calls: list[tuple[str, bytes, bytes]]
    content: frozenset[bytes]


class _Series(NamedTuple):
    """A series of calls; see `Occurrences`."""

    number: int
    lane: str
    view: CodeView


class Journal:
    """The results of one pool's calls. Thread-safe.

    Parameters
    ----------
    store
        Where they are.
    read
        Reads stored results, with the same care as those of nodes.
    say
        Shows the user a line; the second argument is whether it is a warning.

    Attributes
    ----------
    code
        The user's own code as nodes get it; None if they have it.
    environment
        What nodes have that this program has not, and that may make results others.
    """

    code: LocalCode | None = None
    environment: bytes = b""

    def __init__(self, store: ResultStore, read: Read, say: Say) -> None:
        self._store = store
        self._read = read
        self._name = os.path.basename(store.path)
        self._say = say
        self._lock = threading.RLock()  # guards what follows; the user's __reduce__ may submit a task
        self._view = CodeView()
        self._occurrences = Occurrences()
        self._series: weakref.WeakKeyDictionary[TaskGroup, _Series] = weakref.WeakKeyDictionary()
        self._groups = 0
        self._over: deque[int] = deque()  # numbers of series that have ended
        self._places: Counter[str] = Counter()
        # Guards what follows. Not the same, as it is taken to hand over results, for which a __reduce__ may wait.
        self._counting = threading.RLock()
        self._used: list[bytes] = []
        self._said: set[str] = set()
        self._taken = self._stored = self._unsaved = 0
        self._closed = False
        self._say_python()

    def __repr__(self) -> str:
        return f"<Journal {self._name}: {self._taken} taken, {self._stored} stored>"

    # --- before a task ---

    def plan(self, task: SeveralCalls, group: TaskGroup | None) -> Submission | None:
        """Look up the calls of a task; None if they have no identity, so that they are computed and not stored.

        Parameters
        ----------
        task
            The task.
        group
            That of a ``Parallel`` call; None for a task that is submitted by itself.
        """
        with self._lock:
            while self._over:
                self._occurrences.end(self._over.popleft())
            series = self._series_of(group)
            try:
                found = self._identify(task, group, series.view)
            except NoIdentity as error:
                name = label_of(task.parts()[0][0])
                self._say_once(f"{name} {error}", f"a call of {name} can't be identified, and is not stored: {error}")
                return None
            except SkywardError:  # of the code: submitting the task reports it
                return None
            if group is not None and group not in self._series:
                series = self._begin(group, series)
            keys: list[bytes] = []
            rows: list[tuple[str, bytes, int]] = []
            for name, code, digest in found.calls:
                keys.append(self._occurrences.key(digest, series.lane, series.number))
                rows.append((name, code, self._places[name]))
                self._places[name] += 1
            plan = self._look_up(keys, rows)
            origins = series.view.origins
            missing = [rows[number] for number in plan.missing]
            return Submission(plan, missing, found.content, origins, origins.generation, series.view.version)

    def _series_of(self, group: TaskGroup | None) -> _Series:
        """Return the series of a task's calls; that of a group which has none yet begins with the present code."""
        known = None if group is None else self._series.get(group)
        if known is not None:
            return known
        self._view.origins.refresh(now=group is not None)
        lane = lane_of(threading.current_thread().name)  # it is the thread that has called Parallel
        if group is None:
            return _Series(0, lane, self._view)
        if group.code is not self._view.version:
            self._view.forget()
        return _Series(self._groups + 1, lane, self._view)

    def _begin(self, group: TaskGroup, series: _Series) -> _Series:
        """Have a group keep the code with which it begins, whatever is edited from now on."""
        self._groups += 1
        weakref.finalize(group, self._over.append, series.number).atexit = False
        group.code = series.view.version
        mine = self._series[group] = series._replace(view=series.view.copy())
        return mine

    def _identify(self, task: SeveralCalls, group: TaskGroup | None, view: CodeView) -> _Identified:
        find = None if group is None or group.arrays is None else group.arrays.find
        for _ in range(_LOOKS):
            hasher = Hasher(view.origins, find)
            calls = [
                (label_of(call[0]), *_digests(hasher, call, self.environment + task.context)) for call in task.parts()
            ]
            if view.is_certain():
                return _Identified(calls, frozenset(hasher.found))
            if view is not self._view:
                raise NoIdentity("a module that it needs was changed after the Parallel call had begun")
            view.look(self.code)
        raise NoIdentity("your modules keep changing")

    def _look_up(self, keys: Sequence[bytes], rows: Sequence[tuple[str, bytes, int]]) -> CallPlan:
        known: dict[int, Any] = {}
        seconds = 0.0
        for number, (key, (name, code, place)) in enumerate(zip(keys, rows, strict=True)):
            earlier = self._store.known.get(name)
            if earlier is None:
                continue
            if code in earlier and (taken := self._take(key, name)) is not None:
                known[number] = taken[0]
                seconds += taken[1]
                with self._counting:
                    self._taken += 1
                    self._used.append(key)
            else:
                self._explain(name, code, place)
        return CallPlan(keys, known, seconds)

    def _take(self, key: bytes, name: str) -> tuple[Any, float] | None:
        """Return a stored result and the seconds it took; None if it is not there, or can't be read."""
        try:
            found = self._store.get(key)
        except Exception as problem:  # a damaged row may contain anything
            self._say_once("damaged", f"some stored results can't be read and are recomputed: {problem}", warning=True)
            return None
        if found is None:
            return None
        value, error = self._read(found[0])
        if error is not None:
            self._say_once(f"refused {name}", f"stored results of {name} are recomputed: {error}", warning=True)
            return None
        return value, found[1]

    # --- why something is computed although a file with results was given ---

    def _explain(self, name: str, code: bytes, place: int) -> None:
        if name in self._said:
            return
        earlier = self._store.known[name]
        count = sum(known.count for known in earlier.values())
        if code not in earlier:
            self._say_once(
                name,
                f"{count:,} stored result{'s' if count > 1 else ''} of {name} can't be reused, because its code, or "
                "something that it uses, has changed; it is recomputed",
            )
        elif self._store.has_place(earlier[code].id, place):
            self._say_once(
                name,
                f"call {place + 1:,} of {name} has other arguments than in the last run, so it is recomputed; if "
                "they should be the same, look for what differs from run to run, such as a time or a random number",
            )

    def _say_python(self) -> None:
        last = self._store.last_python
        if last is not None and last.encode() != _PYTHON:
            self._say_once("python", f"its results are from Python {last}, and are recomputed with {_PYTHON.decode()}")

    def _say_once(self, what: str, text: str, *, warning: bool = False) -> None:
        with self._counting:
            if what not in self._said:
                self._said.add(what)
                self._say(f"{self._name}: {text}", warning)

    # --- after it ---

    def keep(self, computed: Sequence[Computed]) -> None:
        """Store results before they are handed over; returns when they are safe."""
        changed: dict[int, bool] = {}
        certain = [each for each in computed if self._is_certain(each, changed)]
        fresh = [each.result for each in certain if each.matches]
        with self._counting:
            used, self._used = self._used, []
            if len(certain) < len(computed):
                self._say_once("edited", f"{_UNSTORED} your code was changed after they were submitted", warning=True)
            if len(fresh) < len(certain):
                self._say_once("written", f"{_UNSTORED} an array was changed while they were submitted", warning=True)
        problem: Exception | None = None
        try:
            self._store.put(fresh, used)
        except Exception as error:  # no more than a result that is computed again
            problem = error
        with self._counting:
            if problem is None:
                self._stored += len(fresh)
                if "unsaved" in self._said and fresh:
                    self._said.discard("unsaved")
                    self._say(f"{self._name}: results are stored again", False)
                return
            self._used += used
            self._unsaved += len(fresh)
            self._say_once(
                "unsaved",
                f"results can't be stored: {problem}. The run continues: what is not stored is recomputed next "
                "time, and results are stored again as soon as there is room",
                warning=True,
            )

    def _is_certain(self, computed: Computed, changed: dict[int, bool]) -> bool:
        """Whether a result is that of the code which its key is about.

        Nodes that are sent the code run exactly the task's version. Those on this machine read files when they need
        them, so none may have changed meanwhile; whether one has is looked up once for all results.
        """
        submission = computed.submission
        if self.code is not None and self.code.sent and computed.code is submission.version:
            return True
        origins = submission.origins
        if id(origins) not in changed:
            changed[id(origins)] = origins.has_changed()
        return submission.generation == origins.generation and not changed[id(origins)]

    def close(self) -> None:
        """Close the file, and report what was taken and stored."""
        with self._counting:
            if self._closed:
                return
            self._closed = True
            self._store.close(self._used)
            if self._taken or self._stored or self._unsaved:
                lost = f", could not store {self._unsaved:,}" if self._unsaved else ""
                self._say(f"{self._name}: took {self._taken:,} results, stored {self._stored:,}{lost}", bool(lost))


def _digests(hasher: Hasher, call: Call, context: bytes) -> tuple[bytes, bytes]:
    """Return the digest of a call's function, and that of the whole call."""
    function, args, kwargs = call
    while type(function) is partial and not any(arg is _PLACEHOLDER for arg in function.args):
        args = (*function.args, *args)  # as it calls it
        kwargs = {**function.keywords, **kwargs}
        function = function.func
    code = hashlib.blake2b(_PYTHON + hasher.of(function), digest_size=16).digest()
    arguments = hasher.of((tuple(args), dict(kwargs)))  # in their order, which the function may see
    return code, hashlib.blake2b(code + arguments + context, digest_size=16).digest()
