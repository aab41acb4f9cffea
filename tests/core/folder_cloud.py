"""A provider of machines that are files in a folder: they outlive whoever made them, and any process sees them.

It is importable by name, so that processes which clean up after a dead driver can have it too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from skyward.core.errors import AuthFailed, CloudError, NoCapacity
from skyward.core.interfaces import Trait
from skyward.core.spec import Endpoint, Machine, MachineId, MachineState, Offer, Order, Resources

__all__ = ["FolderCloud"]


@dataclass(frozen=True)
class FolderCloud:
    """Machines in `folder`.

    Files there switch faults on: "down" (nothing works), "locked" (nothing is accepted), "sticky" (destroy is refused),
    "full" (create is), "slow" (a machine is shown only so many seconds after it was made), "stuck" (a FIFO: there is no
    answer until who opened it for writing closes it).
    """

    name: ClassVar[str] = "folder"
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.RENTED, Trait.DESTROYS, Trait.SPOT})
    patience: ClassVar[float] = 30.0
    listing_delay: ClassVar[float] = 0.5
    poll: ClassVar[float] = 0.02

    folder: str
    price: float | None = 0.36

    def _check(self) -> None:
        if self._has("stuck"):
            (Path(self.folder) / "stuck").read_text()
        if self._has("down"):
            raise CloudError("folder: the API is down")
        if self._has("locked"):
            raise AuthFailed("folder: the key was refused")

    def _has(self, fault: str) -> bool:
        return (Path(self.folder) / fault).exists()

    def offers(self, resources: Resources) -> Sequence[Offer]:
        self._check()
        return [
            Offer("small", vcpus=1, memory=2**30, region="drawer", price=self.price),
            Offer("small", vcpus=1, memory=2**30, region="drawer", spot=True, price=0.12),
            Offer("large", vcpus=8, memory=2**35, accelerator="A100", accelerators=2, region="shelf", price=3.6),
            Offer("dear", vcpus=8, memory=2**35, region="shelf", price=None),
        ]

    def create(self, order: Order) -> Sequence[Machine]:
        self._check()
        if self._has("full"):
            raise NoCapacity("folder: no room")
        (Path(self.folder) / "groups").mkdir(exist_ok=True)
        (Path(self.folder) / "groups" / order.tag).touch()
        (Path(self.folder) / "machines").mkdir(exist_ok=True)
        path = Path(self.folder) / "machines" / f"m-{order.name}"
        path.write_text(json.dumps({"tag": order.tag, "order": order.name, "made": time.time()}))
        return [self._machine(path)]

    def _machine(self, path: Path) -> Machine:
        said = json.loads(path.read_text())
        endpoint = Endpoint("ssh", "192.0.2.1", 22, "root")
        return Machine(path.name, endpoint, path.name, state=MachineState.RUNNING, order=said["order"], tag=said["tag"])

    def machines(self, tag: str) -> Sequence[Machine]:
        return [machine for machine in self.all_machines() if machine.tag == tag]

    def all_machines(self) -> Sequence[Machine]:
        self._check()
        hidden = float((Path(self.folder) / "slow").read_text()) if self._has("slow") else 0.0
        found = []
        for path in sorted((Path(self.folder) / "machines").glob("*")):
            try:
                if time.time() >= json.loads(path.read_text())["made"] + hidden:
                    found.append(self._machine(path))
            except FileNotFoundError:  # ended meanwhile, by somebody else
                continue
        return found

    def destroy(self, ids: Sequence[MachineId]) -> None:
        self._check()
        if self._has("sticky"):
            raise CloudError("folder: it can't be ended yet")
        for id in ids:
            (Path(self.folder) / "machines" / id).unlink(missing_ok=True)

    def clear(self, tag: str) -> None:
        self._check()
        if self.machines(tag):
            raise CloudError("folder: the group is in use")
        (Path(self.folder) / "groups" / tag).unlink(missing_ok=True)

    def settings(self) -> dict[str, object]:
        return {"folder": self.folder, **({} if self.price == 0.36 else {"price": self.price})}

    def left(self) -> list[str]:
        """All that is there, as its owner sees it."""
        return sorted(
            str(path.relative_to(self.folder))
            for kind in ("machines", "groups")
            for path in Path(self.folder).glob(f"{kind}/*")
        )
