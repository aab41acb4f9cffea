"""The plan of who gets a blob from whom, in any order of events."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from skyward.core.blobs.relay import FANOUT, GRACE, TELLING, UNLINKED, Drop, Fetch, Free, Give, Relay

BLOBS = [b"x", b"y"]
SIZE = TELLING


class Nodes(RuleBasedStateMachine):
    """Perfect nodes that do as they are told, and fail, die and lose their line as they like."""

    def __init__(self) -> None:
        super().__init__()
        self.relay = Relay()
        self.now = 0.0
        self.born = 0
        self.up: list[str] = []
        self.firewall: set[tuple[str, str]] = set()
        self.known: set[tuple[str, str]] = set()
        self.have: dict[tuple[str, bytes], int] = {}  # bytes that a node has of a blob
        self.source: dict[tuple[str, bytes], str | None] = {}  # what it waits for, and from whom; None: the driver
        self.held: Counter[tuple[str, bytes]] = Counter()
        self.given: Counter[tuple[str, bytes]] = Counter()
        self.received: Counter[tuple[str, bytes]] = Counter()
        self.failures: Counter[tuple[str, bytes]] = Counter()
        self.unlinked: set[str] = set()

    def obey(self, commands: list[object]) -> None:
        for command in commands:
            if isinstance(command, Give):
                key = command.node, command.blob
                assert self.have.get(key, 0) == command.offset, "it sends what is missing, and nothing else"
                assert key not in self.source or self.source[key] is not None
                self.source[key] = None
                self.given[key] += 1
                assert self.given[key] <= 1 + min(1, self.failures[key])
            elif isinstance(command, Fetch):
                key = command.node, command.blob
                assert key not in self.source
                assert (command.node, command.peer) in self.known
                assert command.peer in self.up
                peer = command.peer, command.blob
                assert peer in self.source or self.have.get(peer) == SIZE, "nobody serves what it will not have"
                self.source[key] = command.peer
                self.held[peer] += 1
            elif isinstance(command, Drop):
                self.fail(command.node, command.blob)
            elif command.node in self.up:
                self.held[command.node, command.blob] -= 1

    def fail(self, node: str, blob: bytes) -> None:
        """What a node does that can't go on."""
        key = node, blob
        assert self.source[key] is not None
        self.failures[key] += 1
        self.obey(self.relay.failed(node, blob, self.have.get(key, 0)))
        assert self.source[key] is None, "a failure ends with the driver, at once"

    @rule()
    def born_node(self) -> None:
        self.born += 1
        name = f"n{self.born}"
        for other in self.relay.introduce(name):
            for pair in ((name, other), (other, name)):
                if pair not in self.firewall:
                    self.relay.reached(pair[0], [pair[1]])
                    self.known.add(pair)
        self.up.append(name)

    @rule(data=st.data())
    def raise_a_firewall(self, data: st.DataObject) -> None:
        self.firewall.add((f"n{data.draw(st.integers(1, 8))}", f"n{data.draw(st.integers(1, 8))}"))

    @precondition(lambda self: self.up)
    @rule(data=st.data(), blob=st.sampled_from(BLOBS))
    def want(self, data: st.DataObject, blob: bytes) -> None:
        key = data.draw(st.sampled_from(self.up)), blob
        if key not in self.source and key not in self.have:
            self.held[key] += 1
            self.obey([self.relay.want(*key, SIZE, self.now)])
            assert key in self.source

    @precondition(lambda self: self.source)
    @rule(data=st.data(), whole=st.booleans())
    def bytes_come(self, data: st.DataObject, whole: bool) -> None:
        """From where they should, as far as they are there; the last ones are reported."""
        key = data.draw(st.sampled_from(sorted(self.source)))
        source = self.source[key]
        there = SIZE if source is None else self.have.get((source, key[1]), 0)
        before = self.have.get(key, 0)
        self.have[key] = max(before, there if whole else (before + there) // 2)
        self.received[key] += self.have[key] - before
        if self.have[key] == SIZE:
            del self.source[key]
            self.obey(self.relay.kept(*key, self.now))

    @precondition(lambda self: any(self.source.values()))
    @rule(data=st.data())
    def a_fetch_fails(self, data: st.DataObject) -> None:
        self.fail(*data.draw(st.sampled_from(sorted(key for key, peer in self.source.items() if peer))))

    @precondition(lambda self: self.up)
    @rule(data=st.data())
    def a_node_dies(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.up))
        self.up.remove(name)
        self.unlinked.discard(name)
        for table in (self.have, self.source, self.held):
            for key in [key for key in table if key[0] == name]:
                del table[key]
        self.obey(self.relay.node_down(name))
        assert name not in self.source.values(), "who waited for it does not any more"

    @rule(data=st.data())
    def a_store_forgets(self, data: st.DataObject) -> None:
        """Only what is held for nothing."""
        idle = sorted(key for key, have in self.have.items() if have == SIZE and not self.held[key])
        if idle:
            key = data.draw(st.sampled_from(idle))
            for table in (self.have, self.given, self.received, self.failures):
                table.pop(key, None)
            self.relay.forgotten(*key)

    @rule(data=st.data(), seconds=st.sampled_from([0.1, 1.0, 10.0]))
    def time_passes(self, data: st.DataObject, seconds: float) -> None:
        self.unlinked = set(data.draw(st.sets(st.sampled_from(self.up)))) if self.up else set()
        self.now += seconds
        self.obey(self.relay.late(self.now, self.unlinked))

    @invariant()
    def nobody_serves_too_many(self) -> None:
        pairs = {(peer, node) for (node, _), peer in self.source.items() if peer is not None}
        assert all(count <= FANOUT for count in Counter(peer for peer, _ in pairs).values())

    @invariant()
    def what_moves_is_held_at_both_ends_and_nothing_else(self) -> None:
        wanted: Counter[tuple[str, bytes]] = Counter(self.source)
        wanted = Counter(dict.fromkeys(self.source, 1))
        wanted.update((peer, blob) for (_, blob), peer in self.source.items() if peer is not None)
        assert +self.held == wanted

    @invariant()
    def every_byte_comes_once(self) -> None:
        assert all(count <= SIZE for count in self.received.values())

    def teardown(self) -> None:
        """Whatever happened: in the end everybody has what it wanted."""
        for _ in range(len(self.source) + 1):
            for key, peer in list(self.source.items()):
                if peer is None or self.have.get((peer, key[1])) == SIZE:
                    self.have[key] = SIZE
                    del self.source[key]
                    self.obey(self.relay.kept(*key, self.now))
        assert not self.source
        assert not +self.held
        assert not self.relay._serving


TestNodes = Nodes.TestCase


def full(count: int) -> tuple[Relay, list[str]]:
    relay, names = Relay(), [f"n{i}" for i in range(count)]
    for name in names:
        relay.introduce(name)
    for name in names:
        relay.reached(name, names)
    return relay, names


@given(count=st.integers(2, 60))
def test_the_driver_sends_once_and_the_tree_is_flat(count: int) -> None:
    """With FANOUT children each, and no node further away than it must be."""
    relay, names = full(count)
    commands = [relay.want(name, b"x", SIZE, 0.0) for name in names]
    assert [type(command) for command in commands] == [Give] + [Fetch] * (count - 1)
    depth = {names[0]: 0}
    for command in commands[1:]:
        assert isinstance(command, Fetch)
        depth[command.node] = depth[command.peer] + 1
    assert max(depth.values()) <= (count).bit_length() - 1


def test_who_has_it_whole_is_asked_first() -> None:
    relay, _ = full(4)
    relay.want("n0", b"x", SIZE, 0.0)
    relay.want("n1", b"x", SIZE, 0.0)
    relay.kept("n0", b"x", 1.0)
    assert relay.want("n2", b"x", SIZE, 1.0) == Fetch("n2", b"x", "n0")
    assert relay.want("n3", b"x", SIZE, 1.0) == Fetch("n3", b"x", "n2")  # n0 serves two, and n1 began further away


def test_what_takes_longer_than_from_the_driver_is_dropped() -> None:
    """The driver's line would be shared by all that wanted it; and a moment more."""
    relay, _ = full(3)
    for name in ("n0", "n1", "n2"):
        relay.want(name, b"x", SIZE, 0.0)
    assert relay.late(1000.0, []) == []  # the first has not got it either: how fast the driver is, is not known
    relay.kept("n0", b"x", 1000.0)
    assert relay.late(3000.0 + GRACE, []) == []
    assert relay.late(3000.1 + GRACE, []) == [Drop("n1", b"x"), Drop("n2", b"x")]
    assert relay.late(9999.0, []) == []
    assert relay.failed("n1", b"x", 70) == [Give("n1", b"x", 70), Free("n0", b"x")]
    assert relay.failed("n1", b"x", 0) == [Give("n1", b"x", 0)]  # the 70 were not what they should be
    assert relay.failed("n1", b"x", 0) == []


def test_what_is_small_does_not_tell_how_fast_the_driver_is() -> None:
    """An edited module takes a round trip; by that measure a large array would be late after hours."""
    relay, _ = full(2)
    for name in ("n0", "n1"):
        relay.want(name, b"x", SIZE, 0.0)
    relay.kept("n0", b"x", 1.0)
    relay.want("n0", b"y", 10, 1.0)
    relay.kept("n0", b"y", 2.0)
    assert relay.late(2.1 + GRACE, []) == [Drop("n1", b"x")]


def test_a_peer_that_the_driver_lost_sight_of_is_waited_for_a_moment_only() -> None:
    relay, _ = full(3)
    relay.want("n0", b"x", SIZE, 0.0)
    relay.want("n1", b"x", SIZE, 0.0)
    assert relay.late(1.0, ["n0"]) == []
    assert relay.want("n2", b"x", SIZE, 1.0) == Fetch("n2", b"x", "n1")
    assert relay.late(1.1 + UNLINKED, ["n0"]) == [Drop("n1", b"x")]


def test_acquaintances_stay_few_however_many_nodes_there_are() -> None:
    relay = Relay()
    counts: Counter[str] = Counter()
    for i in range(1000):
        others = relay.introduce(f"n{i}")
        counts.update([f"n{i}"] * len(others) + others)
    assert max(counts.values()) <= 40
    assert counts.total() <= 2 * 16 * 1000
