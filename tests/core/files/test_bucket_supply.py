"""Keys of buckets are renewed at half-time; the pool's own tests bring buckets to nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from skyward.core.errors import AuthFailed, SkywardError
from skyward.core.files.bucket_supply import BucketSupply
from skyward.core.files.requests import Requests
from skyward.core.nodes.session import Session
from skyward.core.protocol.buckets import Bucket, BucketKeys
from skyward.core.protocol.messages import Attach, Renew
from skyward.core.volumes import S3Volume
from tests.simulation.world import World

HOUR = 3600.0
LASTING = 12 * HOUR


class Node:
    """A session: notes what it is to send."""

    node = "n0"

    def __init__(self) -> None:
        self.renewed: list[BucketKeys] = []
        self.fault: Exception | None = None

    def send(self, message: Attach | Renew, buffers: Sequence[bytes]) -> int:
        if isinstance(message, Renew):
            if self.fault is not None:
                raise self.fault
            self.renewed.append(BucketKeys.unpack(buffers[0]))
        return 1


class Computer:
    """A driver with one node that is to mount a bucket, under virtual time; its clock on the wall may go ahead."""

    def __init__(self) -> None:
        self.world = World(0)
        self.process = self.world.process("driver")
        self.ahead = 0.0
        self.lasting = LASTING
        self.asked = 0
        self.refusal: SkywardError | None = None
        self.node = Node()
        self.warnings: list[str] = []
        volume = S3Volume("data", "bucket")
        found = self.check()
        self.supply = BucketSupply(Requests(), [(volume, self, found)], warn=self.warnings.append, wall=self.wall)
        self.process.call_soon(self.supply.begin)
        self.world.run_task(self.process, self.supply.bring(cast("Session", self.node), str))

    def wall(self) -> float:
        return self.world.now + self.ahead

    def check(self) -> Bucket:
        return Bucket("s3://bucket/", "bucket", {}, BucketKeys("keys", expires=self.wall() + LASTING), 1, 1)

    def keys(self) -> BucketKeys:
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal
        return BucketKeys("keys", expires=self.wall() + self.lasting)

    def go_on(self, seconds: float) -> None:
        reached: list[Any] = []
        self.world.after(seconds, lambda: reached.append(True))
        self.world.run(lambda: bool(reached), seconds + 1, "time goes on")
        assert not self.world.broken


@pytest.fixture
def computer() -> Iterator[Computer]:
    computer = Computer()
    yield computer
    computer.supply.stop()
    computer.world.close()


def test_keys_are_renewed_at_half_time_again_and_again(computer: Computer) -> None:
    computer.go_on(LASTING / 2 - HOUR)
    assert computer.asked == 0
    for renewed in (1, 2, 3):
        computer.go_on(LASTING / 2)
        assert [len(computer.node.renewed), computer.asked] == [renewed, renewed]
    computer.supply.stop()
    computer.go_on(LASTING)
    assert computer.asked == 3


def test_keys_are_renewed_soon_after_the_computer_was_suspended(computer: Computer) -> None:
    """The loop's time has stood still meanwhile, that of the keys has not."""
    computer.go_on(HOUR)
    computer.ahead = 8 * HOUR
    computer.go_on(61)
    assert [keys.expires for keys in computer.node.renewed] == [pytest.approx(computer.wall() + LASTING, abs=61)]


def test_a_failure_is_said_and_tried_again(computer: Computer) -> None:
    computer.refusal = AuthFailed("no")
    computer.go_on(LASTING / 2 + 31)
    assert computer.warnings == 2 * ["s3://bucket/: no new keys for the nodes yet, whose own end in time: no"]
    computer.refusal = None
    computer.go_on(31)
    assert [len(computer.warnings), len(computer.node.renewed)] == [2, 1]


def test_a_fault_of_our_own_does_not_end_it(computer: Computer) -> None:
    computer.node.fault = RuntimeError("odd")
    computer.go_on(LASTING / 2 + 1)
    assert len(computer.warnings) == 1
    computer.node.fault = None
    computer.go_on(31)
    assert len(computer.node.renewed) == 1


def test_keys_that_have_ended_when_they_come_are_not_asked_for_without_pause(computer: Computer) -> None:
    computer.lasting = -1.0
    computer.go_on(LASTING / 2 + 59)
    assert computer.asked == 2


def test_nodes_that_are_gone_get_no_keys(computer: Computer) -> None:
    computer.go_on(1)
    computer.supply.node_down("n0")
    computer.go_on(LASTING / 2)
    assert [computer.asked, len(computer.node.renewed)] == [1, 0]
