"""Messages to browsers: whole ones, and changes that add up to the same."""

from __future__ import annotations

import json
from typing import Any

from skyward.core.events import MachineInfo, NodeGone, NodeReady, Note, Printed, TaskEnded, Transferred
from skyward.core.status import NodeStatus, PoolStatus, RunningTask, TaskCounts
from skyward.dashboard.feed import Feed
from skyward.dashboard.recording import Recording
from tests.dashboard.scenes import SCENES


def status(*nodes: NodeStatus) -> PoolStatus:
    return PoolStatus("p", nodes, "aws", 2, tasks=TaskCounts(1, 2, 3, 4, 5))


def changes(feed: Feed, now: float, *nodes: NodeStatus) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(feed.changes(status(*nodes), now, "running"))
    return message


def test_only_what_has_changed_is_sent() -> None:
    recording = Recording(10.0)
    feed = Feed(recording, "p", 1e9)
    node = NodeStatus("a", 2, busy=1, type="c7i")
    info = MachineInfo("aws", "c7i", 0.5, spot=True, region="eu")
    recording.handle(NodeReady("a", 2, info=info), 10.5)
    recording.handle(TaskEnded(1, 0.25, ok=True, node="a", slot=1, label="f", started=10.5), 10.75)
    recording.handle(Printed("a", 2, "oh\n"), 11.0)
    recording.handle(Note("hello"), 11.0)
    recording.digest(11.0)
    first = changes(feed, 11.0, node)
    assert first["now"] == 1000
    assert first["status"]["tasks"] == [1, 2, 3, 4, 5]
    assert first["labels"] == ["f"]
    assert first["rows"] == [[0, 0, 0], [1, 0, 1]]
    assert first["blocks"] == [[1], [500], [250], [100], [0], [1], [0]]
    assert first["counts"] == [[0, 1, 1, 0, 0, 0]]
    assert first["lines"] == [[1000, "err", "a", "oh"]]
    assert first["log"] == [[1000, "note", "", "hello"]]
    (sent,) = first["nodes"]
    assert (sent["machine"], sent["price"], sent["spot"], sent["since"]) == (["aws", "c7i", "eu"], 0.5, True, 500)
    second = changes(feed, 12.0, node)
    assert set(second) == {"now", "state", "status", "bins"}
    third = changes(feed, 13.0, NodeStatus("a", 2, busy=0, type="c7i"))
    assert third["counts"] == [[0, 0, 1, 0, 0, 0]]
    assert "nodes" not in third
    recording.handle(NodeGone("a", "unplugged"), 14.0)
    recording.digest(14.0)
    (gone,) = changes(feed, 14.0)["nodes"]
    assert (gone["state"], gone["detail"], gone["until"]) == ("lost", "unplugged", 4000)


def test_what_runs_is_told_once_and_when_it_runs_no_more() -> None:
    recording = Recording(0.0)
    feed = Feed(recording, "p", 0.0)
    recording.handle(NodeReady("a", 2), 0.0)
    recording.digest(0.0)

    def told(now: float, *running: RunningTask) -> tuple[Any, Any]:
        message = json.loads(feed.changes(PoolStatus("p", running=running), now, "running"))
        return message.get("running"), message.get("idle")

    fit, score = RunningTask("a", 0, "fit", 1, 2.0), RunningTask("a", 1, "score", 4, 0.5)
    unknown = [
        RunningTask("a", -1, "fit", 1, 9.0),
        RunningTask("a", 2, "fit", 1, 9.0),
        RunningTask("b", 0, "fit", 1, 9),
    ]
    assert told(3.0, fit, score, *unknown) == ([[0, 1], [1000, 2500], [0, 1], [1, 4]], None)
    assert told(4.003, fit._replace(seconds=3.0), score._replace(seconds=1.5)) == (None, None), "the clock goes on"
    assert told(5.0, fit._replace(seconds=0.3), score._replace(seconds=2.5)) == ([[0], [4700], [0], [1]], None)
    assert told(6.0, fit._replace(seconds=1.3)) == (None, [1])
    whole = json.loads(feed.whole(PoolStatus("p", running=(fit._replace(seconds=2.3),)), 7.0, "running"))
    assert whole["running"] == [[0], [4700], [0], [1]]
    assert told(8.0) == (None, [0])


def test_bins_come_with_those_that_may_still_grow() -> None:
    recording = Recording(0.0)
    feed = Feed(recording, "p", 0.0)
    for second in range(7):
        recording.handle(TaskEnded(1, 0.1, ok=True, label="f"), second)
        recording.digest(float(second))
    assert changes(feed, 7.0)["bins"] == [1000, 0, [1] * 7, [0] * 7]
    assert changes(feed, 7.0)["bins"] == [1000, 3, [1] * 4, [0] * 4]
    recording.handle(TaskEnded(3, 0.1, ok=True, label="f"), 700.0)
    recording.digest(700.0)
    width, first, done, _ = changes(feed, 700.0)["bins"]
    assert (width, first, sum(done)) == (2000, 0, 10), "all of them, since they are wider now"


def test_a_node_that_is_forgotten_is_told_once() -> None:
    recording = Recording(0.0, max_rows=1)
    feed = Feed(recording, "p", 0.0)
    recording.handle(NodeReady("a", 1), 0.0)
    recording.handle(NodeGone("a", None), 1.0)
    recording.digest(1.0)
    changes(feed, 1.0)
    recording.handle(NodeReady("b", 1), 2.0)
    recording.digest(2.0)
    told = changes(feed, 2.0)
    # The number of the node that is forgotten may be the new one's, which replaces it then.
    assert {each["id"] for each in told["nodes"]} | set(told.get("forgotten", [])) >= {0}
    assert told["rows"] == [[0, told["nodes"][0]["id"], 0]]
    assert "forgotten" not in changes(feed, 3.0)


def test_whole_and_changes_tell_the_same() -> None:
    scene = SCENES["draining"]()
    whole = json.loads(Feed(scene.recording, "p", 1.0).whole(scene.status, scene.now, scene.state))
    later = Feed(scene.recording, "p", 1.0)
    added = json.loads(later.changes(scene.status, scene.now, scene.state))
    for key in set(whole) - {"whole", "pool", "blocks"}:
        assert whole[key] == added.get(key, []), key  # what there is none of need not be told
    assert sum(whole["blocks"][5]) == sum(added["blocks"][5])
    assert whole["pool"] == {"name": "p", "began": 1000}


def test_text_of_nodes_is_visible_and_never_ends_the_line() -> None:
    """A message is one line of a stream of events."""
    recording = Recording(0.0)
    recording.handle(Printed("a\n\ndata: {}", 1, "x\n\n\u2028data: y\x00"), 0.0)
    label = "f\n\x1b[2J"
    recording.handle(TaskEnded(1, 0.1, ok=False, node="a", slot=0, label=label, error="E: \r\n", started=0.0), 0.0)
    recording.digest(0.0)
    text = Feed(recording, "p\n", 0.0).whole(status(NodeStatus("\x1b[2J\n", 1)), 1.0, "running")
    assert text.isascii()
    assert not set(text) & {"\n", "\r"}
    message = json.loads(text)
    assert message["labels"] == [r"f\n\x1b[2J"]


def test_a_pool_of_a_thousand_nodes_that_does_nothing_costs_little() -> None:
    recording = Recording(0.0)
    feed = Feed(recording, "p", 0.0)
    nodes = tuple(NodeStatus(f"node-{number}", 4, busy=2) for number in range(1000))
    recording.meet(status(*nodes))
    assert len(feed.changes(status(*nodes), 1.0, "running")) > 100_000
    assert len(feed.changes(status(*nodes), 2.0, "running")) < 500


def test_what_was_sent_to_a_node_is_told_once() -> None:
    recording = Recording(10.0)
    feed = Feed(recording, "p", 0.0)
    recording.handle(NodeReady("a", 1), 10.0)
    recording.handle(Transferred("a", 8_000_000, "", 11.0, 0.5), 11.5)
    recording.handle(Transferred("a", 4_000_000, "b", 12.0, 0.25), 12.25)
    recording.handle(Transferred("nobody", 1, "", 12.0, 0.25), 12.25)
    recording.digest(13.0)
    sent = [[0, 1000, 500, 8_000_000, ""], [0, 2000, 250, 4_000_000, "b"]]
    told = changes(feed, 13.0)
    assert (told["transfers"], told["counts"]) == (sent, [[0, 0, 0, 0, 2, 12_000_000]])
    assert not {"transfers", "counts"} & set(changes(feed, 14.0))
    assert json.loads(feed.whole(PoolStatus("p"), 14.0, "running"))["transfers"] == sent
