"""How tasks go, in words and as HTML; and that nothing of others' is markup."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from skyward.core.progress import progress_html, progress_text
from skyward.core.status import FunctionStatus, NodeStatus, PoolStatus, TaskCounts


def status(tasks: TaskCounts, **more: object) -> PoolStatus:
    nodes = NodeStatus("node-1", 4, busy=2, done=tasks.done), NodeStatus("node-2", 0, state="starting", detail="boots")
    values = {"provider": "aws", "wanted": 2, "seconds": 75.0, **more}
    return PoolStatus("sky-1", nodes, tasks=tasks, **values)  # type: ignore[arg-type]


def test_before_the_first_task_it_says_what_nodes_do() -> None:
    assert progress_text(status(TaskCounts()), None) == "skyward aws · 1 of 2 nodes ready, boots · 1 min 15 s"


def test_then_how_tasks_go() -> None:
    now = status(TaskCounts(5, 2, 10, 1, 2), rate=3.456, left=90.0, cost=0.42, price=1.5, lost=1)
    assert progress_text(now, None).split(" · ") == [
        *("skyward aws", "10 of 20 tasks done", "1 failed", "2 cancelled", "3.46 tasks/s", "2 of 4 slots busy"),
        *("about 1 min 30 s left", "1 nodes lost", "$0.42, $1.5/h", "1 min 15 s"),
    ]


def test_a_later_cell_counts_from_its_beginning() -> None:
    """With what had not ended by then."""
    before = status(TaskCounts(0, 0, 10, 1, 0), seconds=70.0)
    going = progress_text(status(TaskCounts(0, 1, 12, 1, 0)), before)
    assert going.startswith("skyward aws · 2 of 3 tasks done · 0 tasks/s")
    ended = progress_text(status(TaskCounts(0, 0, 13, 2, 0)), before)
    assert ended == "skyward aws · 3 of 4 tasks done · 1 failed · 5 s"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "br":
            self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(min_size=1), st.text(), st.integers(0, 60))
def test_texts_of_others_stay_texts(name: str, detail: str, nodes: int) -> None:
    """Also many of them."""
    now = PoolStatus(
        name,
        tuple(NodeStatus(f"{name}{number}", 1, state="lost", detail=detail, type=name) for number in range(nodes)),
        provider=name,
        functions=(FunctionStatus(name, mean=0.5), FunctionStatus("<script>alert(1)</script>")),
    )
    tags = _Tags()
    tags.feed(now._repr_html_() + progress_html(now, None))
    tags.close()
    assert tags.open == []
    assert tags.seen <= {"div", "b", "span", "br", "table", "thead", "tbody", "tr", "th", "td"}
    assert "<script>alert(1)</script>" in tags.text
    assert ("more" in tags.text) >= (nodes > 30)
