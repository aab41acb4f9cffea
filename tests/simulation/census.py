"""What driver and agents still hold: every container that the product's objects have, found without knowing them.

A container that nobody has thought of here is expected to be empty once every task has settled; the few that need not
be are listed with their reasons.
"""

from __future__ import annotations

import functools
import zlib
from collections import deque
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from typing import Any

__all__ = ["held", "left", "mute"]

# Class.attribute -> what it holds of a pool that has come to an end.
_OVER = {
    "Allowed._known": "classes that results may have, once they have been looked up",
    "Bundles._places": "the user's modules",
    "CodeSurvey._seen": "the user's modules",
    "CodeSurvey.units": "the user's modules",
    "CodeVersion.blobs": "the user's modules",
    "CodeVersion.bundles": "the user's modules",
    "Listing.files": "the user's modules",
    "LocalCode._current": "the user's modules",
    "LocalCode._listings": "the user's modules",
    "LocalCode._names": "the user's modules",
    "LocalCode._read": "the user's modules",
    "Completion.lost": "why each node was lost, for the texts of errors",
    "Events._of": "who hears which kinds of events",
    "Fleet._handlers": "functions",
    "Folder.files": "the user's folder",
    "Folder.folders": "the user's folder",
    "Folder.inodes": "the user's folder",
    "FolderSupply._contents": "the user's folder",
    "FolderSupply._reading": "the user's folder",
    "_Content._pieces": "the user's folder",
    "_Content._recent": "the user's folder",
    "Fleet._states": "one for each provider",
    "Purse._states": "the same",
    "OrderBook._refusals": "why offers were refused, for the texts of errors",
    "OrderBook._resting": "offers that were refused",
    "OrderBook.candidates": "offers",
    "OrderBook.placed": "one for each order",
    "MachineReports._made": "one for each rented machine",
    "MachineReports._offers": "one for each order",
    "Journal._places": "one for each function",
    "Journal._said": "what the user was told",
    "Journal._used": "results that were taken since some were stored",
    "ModuleOrigins._digests": "modules",
    "ModuleOrigins._own": "modules",
    "ModuleOrigins._states": "modules",
    "ModuleOrigins._versions": "distributions",
    "Occurrences._numbers": "one for each call of a run whose results are kept",
    "Occurrences._series": "the same",
    "ResultStore._functions": "one for each function",
    "ResultStore.known": "the same",
    "Listeners._sent": "addresses that tasks may connect to",
    "Plan.providers": "settings",
    "PoolContext.guests": "what front ends keep, one for each",
    "Plan.setup": "settings",
    "Seats._free": "numbers of nodes on this machine",
    "Snapshots._places": "where arrays were; 1024 at most",
    "SourceState.denied": "since when a provider has refused the credentials",
    "OrderBook.terms": "one for each order that a budget pays for",
    "Denials._counts": "what a provider has refused",
    "SourceState.refusals": "what a provider has refused",
    "Surroundings._began": "this program's environment",
    "Surroundings._kept": "names of variables",
    "Surroundings._variables": "this program's environment",
}
# What else copies of the user's modules are in.
_COPIES = ("NodeHoldings._users", "Snapshots._kept", "_Receiver.using")
# Messages to be sent or acknowledged: one of many nodes may always report its load, or is asked whether it lives.
_PASSING = ("Outbox._kept", "Wire._small")
# The same of an open pool that has nothing to do.
_OPEN = {
    **_OVER,
    "AgentLink._chores": "one for each connection",
    "AgentLink.stripes": "connections",
    "CodeFolders._files": "the user's modules",
    "CodeFolders._ready": "versions of them",
    "_LiveNode.codes": "versions of them",
    "BufferPool._free": "memory for reuse, of bounded size",
    "Distributor._listening": "nodes",
    "Distributor._nodes": "nodes",
    "Endpoint.options": "settings",
    "FileService._mounts": "the user's folder",
    "ForkServerClient._env": "settings",
    "ForkServerClient.pids": "slots",
    "LatePackages._supplies": "packages of nodes",
    "LatePackages._turns": "nodes",
    "Manifest.chunks": "the user's folder",
    "Manifest.files": "the user's folder",
    "Manifest.folders": "the user's folder",
    "NodeGpus._ids": "GPUs",
    "NodeGpus._setup": "settings",
    "NodeHoldings._sizes": "blobs that a node keeps for later tasks, within a budget",
    "OutOfMemory._files": "files of the kernel",
    "PeerExchange._routes": "nodes",
    "Provisioner._errands": "one for each node, and the polls",
    "Provisioner._lives": "nodes",
    "Relay._holders": "blobs that nodes keep",
    "Relay._known": "nodes",
    "Relay._reach": "nodes",
    "RollCall._seen": "numbers of the tasks that were there the last time it asked; it asks again when there are some",
    "RollCaller._nodes": "nodes",
    "Schedule._idle": "nodes",
    "Schedule._nodes": "nodes",
    "Session.facts": "what a node has said about itself",
    "SlotOutput._fds": "pipes of a slot",
    "SlotOutput._partial": "pipes of a slot",
    "SlotProcesses._config": "settings",
    "SlotProcesses._setup": "settings",
    "SlotPool.setup": "settings",
    "SlotTable._cancelled": "tasks that were cancelled and may still arrive; 4096 at most",
    "SlotTable._idle": "slots",
    "SlotTable.slots": "slots",
    "Snapshots._left": "copies that may still be on their way, of bounded size",
    "Snapshots._idle": "copies for later calls to nodes on the same machine, of bounded size",
    "SourceState.machines": "machines",
    "Store._adopted": "blobs that are kept",
    "Store._cached": "the user's folder",
    "Store._folders": "of blobs that are kept",
    "Store._latest": "blobs that are kept",
    "Store._locks": "folders",
    "Store._memory": "blobs that are kept, where the disk is full",
    "Store._parents": "folders",
    "Store._paths": "blobs that are kept",
    "TaskProgress._processes": "slots",
    "TaskRunner._nodes": "nodes",
    "Wire._stripes": "connections",
    "Wire.states": "which message may be sent when",
    "WireSocket._stripes": "connections",
}


def held(*roots: object, versions: Sequence[Any] = ()) -> list[str]:
    """What these hold although there is nothing to do.

    Parameters
    ----------
    *roots
        Where to look.
    versions
        Those of the user's code that calls have, in addition to what is found there.
    """
    return _all_but(_OPEN, roots, versions)


def _all_but(expected: Container[str], roots: Iterable[object], versions: Sequence[Any]) -> list[str]:
    reached = [(name, thing) for name, thing in _reachable(roots) if isinstance(thing, _CONTAINERS) and thing]
    copies = {copy for name, thing in reached if name == "CodeVersion.blobs" for copy in thing}
    copies.update(copy for version in versions for copy in version.blobs)
    found = {(name, _amount(name, thing)) for name, thing in reached if name not in expected}
    return sorted(f"{name} ({amount})" for name, amount in found if name not in _COPIES or int(amount) > len(copies))


def _amount(name: str, thing: Collection[Any]) -> str:
    """How much there is: where something is always passing through, another text for another first item."""
    if name not in _PASSING or not isinstance(thing, deque):  # what its messages hold goes by the same name
        return str(len(thing))
    first = next(iter(thing))
    number = first[0] if isinstance(first, tuple) else zlib.crc32(first)
    return f"from {number} on, at {id(thing):#x}"


def mute(*roots: object) -> list[str]:
    """Which of the product's objects can't say what they are, as a debugger or a log would ask them at any time."""
    found = set()
    for thing in _objects(roots):
        try:
            repr(thing)
        except Exception as error:
            found.add(f"{type(thing).__name__}: {error!r}")
    return sorted(found)


def left(*roots: object, versions: Sequence[Any] = ()) -> list[str]:
    """What these hold although the block has ended; see `held`."""
    return _all_but(_OVER, roots, versions)


def _objects(roots: Iterable[object]) -> Iterator[object]:
    """Each object of a class of the product's that is reachable from these."""
    return (thing for _, thing in _reachable(roots) if type(thing).__module__.startswith("skyward."))


def _reachable(roots: Iterable[object]) -> Iterator[tuple[str, Any]]:
    """Each container, and each object of the product's, with the class and attribute where it was found."""
    seen: set[int] = set()
    unseen: list[tuple[str, Any]] = [(type(root).__name__, root) for root in roots]
    while unseen:
        name, thing = unseen.pop()
        kind = type(thing)
        if not (sort := _sort(kind)) or id(thing) in seen:
            continue
        seen.add(id(thing))
        if sort == "items":
            unseen += [(name, item) for item in thing if type(item) not in _PLAIN]
            continue
        yield name, thing
        if sort == "container":
            items = thing.values() if isinstance(thing, dict) else thing
            unseen += [(name, item) for item in items if type(item) not in _PLAIN]
            continue
        names = _names(kind)
        for slot in _slots(kind):
            if type(value := getattr(thing, slot, None)) not in _PLAIN:
                unseen.append((names[slot], value))
        for attribute, value in getattr(thing, "__dict__", _NOTHING).items():
            if type(value) not in _PLAIN:
                unseen.append((names[attribute], value))


_CONTAINERS = (dict, list, set, deque)
_PLAIN = {str, bytes, int, float, bool, type(None)}
_NOTHING: dict[str, Any] = {}


@functools.cache
def _sort(kind: type[Any]) -> str:
    """How things of a class are looked through; empty for not at all."""
    if kind in _PLAIN:
        return ""
    if issubclass(kind, _CONTAINERS):
        return "container"
    if issubclass(kind, (tuple, frozenset)):
        return "items"
    return "object" if kind.__module__.startswith("skyward.") else ""


class _Names(dict[str, str]):
    """Attributes of a class, as they are called here."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def __missing__(self, attribute: str) -> str:
        name = self[attribute] = f"{self._kind}.{attribute}"
        return name


@functools.cache
def _names(kind: type[Any]) -> _Names:
    return _Names(kind.__name__)


@functools.cache
def _slots(kind: type[Any]) -> list[str]:
    """Names of attributes that objects of a class have in addition to those in their dict."""
    slots = [base.__dict__.get("__slots__", ()) for base in kind.__mro__]
    return [name for names in slots for name in ([names] if isinstance(names, str) else names)]
