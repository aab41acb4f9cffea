"""What users see: the counting, the drawing on a terminal of a fixed width, and the whole on a real pty."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
import threading
from pathlib import Path
from typing import TextIO

import pytest

from skyward.console import Console, live_text, mark, summary_text, terminal
from skyward.core.events import (
    Event,
    MachineInfo,
    MachineMade,
    Machines,
    NodeGone,
    NodeReady,
    NodeStep,
    Note,
    PoolStarted,
    Printed,
    TaskEnded,
    TasksQueued,
)
from skyward.core.facts import Facts
from skyward.core.tally import Tally
from tests.core.test_tally import tally

REPOSITORY = Path(__file__).resolve().parents[1]


class Heard:
    """A console as a pool has it: with what is counted of the same events."""

    def __init__(self, *, live: bool = False, stream: TextIO | None = None) -> None:
        self.facts = Facts()
        self.console = Console(live=live, facts=self.facts, stream=stream)

    def handle(self, event: Event) -> None:
        if isinstance(event, Facts.kinds):
            self.facts.handle(event)
        self.console.handle(event)

    def close(self) -> None:
        self.console.close()


# --- wording ---


def test_before_any_node_says_what_it_does() -> None:
    assert live_text(tally((0, PoolStarted("p", "ssh", 3, 2))), 0.3) == "skyward ssh: nodes 0/3 | 0 s"


def test_while_starting_the_line_says_what_nodes_do() -> None:
    counted = tally(
        (0, PoolStarted("p", "ssh", 3, 2)),
        (0, NodeStep("a", "connecting to 10.0.0.1")),
        (0, NodeStep("b", "connecting to 10.0.0.2")),
        (0, NodeStep("c", "installing packages")),
    )
    assert live_text(counted, 4.2) == "skyward ssh: nodes 0/3 | 2 connecting | 1 installing | 4 s"
    counted.add(NodeReady("a", 2), 5)
    counted.add(NodeReady("b", 2), 5)
    assert live_text(counted, 5) == "skyward ssh: nodes 2/3 | installing packages | 5 s"


def test_machines_that_are_not_nodes_yet_are_counted() -> None:
    """While they are bought and boot, and at the end while they are given back."""
    counted = tally((0, PoolStarted("p", "aws", 3, 2)), (0, Machines(ordered=1, booting=2)))
    assert live_text(counted, 19) == "skyward aws: nodes 0/3 | 1 ordered | 2 booting | 19 s"
    counted.add(Machines(ending=3), 20)
    assert live_text(counted, 20) == "skyward aws: nodes 0/3 | 3 releasing | 20 s"
    counted.add(Machines(), 30)
    assert live_text(counted, 30) == "skyward aws: nodes 0/3 | 30 s"


def test_while_running_the_line_says_how_tasks_get_on() -> None:
    counted = tally(
        (0, PoolStarted("p", "ssh", 2, 2)),
        (0, NodeReady("a", 2)),
        (0, NodeReady("b", 2)),
        (0, TasksQueued(108)),
        (0, TasksQueued(2)),
        (1, TaskEnded(2, 1, False)),
        (1, NodeGone("b", "the link broke")),
        (60, TaskEnded(98, 1, True)),
    )
    expected = "skyward ssh: nodes 1/2 | 1 lost | slots 0/2 busy | tasks 98/110 | 10.3 tasks/s | 2 failed | 60 s"
    assert live_text(counted, 60.5) == expected


def test_while_running_the_line_says_when_it_ends_and_what_it_costs() -> None:
    counted = tally(
        (0, PoolStarted("p", "aws", 1, 2)),
        (0, MachineMade("i-1", MachineInfo("aws", price=3.6))),
        (10, NodeReady("a", 2)),
        *[(10, TasksQueued(1)) for _ in range(11)],
        (110, TaskEnded(1, 100, True)),
    )
    expected = "skyward aws: nodes 1/1 | slots 2/2 busy | tasks 1/11 | 0.1 tasks/s | 7 min 30 s left | $0.11 | 110 s"
    assert live_text(counted, 110.0) == expected


def test_the_summary() -> None:
    counted = tally(
        (0, PoolStarted("p", "local", 1, 1)),
        (0, NodeReady("a", 1)),
        (0, TasksQueued(40)),
        (5, TaskEnded(40, 4.5, True)),
        (5, TasksQueued(4)),
        (5, TaskEnded(3, 0, False)),
        (5, TaskEnded(1, 0, False, cancelled=True)),
    )
    expected = "skyward local: 40 tasks in 5.00 s | 8.0 tasks/s | efficiency 90.0% | 3 failed | 1 cancelled"
    assert summary_text(counted) == expected


@pytest.mark.parametrize(("slots", "tasks", "seconds"), [(100, 1, 0.9), (1, 1000, 0.03), (4, 7, 1.0)])
def test_no_percentage_where_it_would_blame_the_work(slots: int, tasks: int, seconds: float) -> None:
    """Fewer tasks than slots, or tasks so short that the way to them is most: the share of busy slots says nothing."""
    counted = tally(
        (0, PoolStarted("p", "local", 1, slots)),
        (0, NodeReady("a", slots)),
        (0, TasksQueued(tasks)),
        (1, TaskEnded(tasks, seconds, True)),
    )
    assert f"| total task time {seconds:.2f} s" in summary_text(counted)
    assert "efficiency" not in summary_text(counted)


def test_every_line_is_marked() -> None:
    assert mark("node-1", "a\nb\n") == "[node-1] a\n[node-1] b\n"
    assert mark("node-1", "no end") == "[node-1] no end\n"
    assert mark("node-1", "\n") == "[node-1] \n"


def test_what_tasks_print_keeps_its_colours_and_nothing_else() -> None:
    assert mark("n\x1b[2J", "\x1b]0;t\x07\x1b[31mred\nmore\n") == ("[n\\x1b[2J] \x1b[31mred\n[n\\x1b[2J] more\x1b[0m\n")


def test_what_machines_are_called_is_visible() -> None:
    tally = Tally(provider="p\x1b[2J")
    tally.add(NodeStep("n", "connecting to \x1b]0;t\x07host\n"), 0.0)
    for text in (live_text(tally, 1.0), summary_text(tally)):
        assert text.isprintable()
        assert "\\x1b[2J" in text


def test_notes_are_visible(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    terminal = io.StringIO()
    console = Heard(live=True, stream=terminal)
    console.handle(Note("refused: \x1b[2J\nnext"))
    console.close()
    quiet = Heard(live=False)
    quiet.handle(Note("refused: \x1b[2J", warning=True))
    quiet.close()
    said = terminal.getvalue() + capsys.readouterr().err + caplog.text
    assert said.count("refused: \\x1b[2J") == 2
    assert "\x1b[2J\nnext" not in said


# --- the console without a terminal ---


def test_output_of_tasks_is_shown_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = Heard(live=False)
    console.handle(Printed("node-1", 1, "out\n"))
    console.handle(Printed("node-2", 2, "one\ntwo\n"))
    console.close()
    assert capsys.readouterr() == ("[node-1] out\n", "[node-2] one\n[node-2] two\n")


def test_streams_are_looked_up_when_text_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Heard(live=False)
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    console.handle(Printed("node-1", 1, "out\n"))
    console.close()
    assert mine.getvalue() == "[node-1] out\n"


@pytest.mark.parametrize("stream", [None, io.TextIOWrapper(io.BytesIO())], ids=["none", "closed"])
def test_a_missing_stream_is_no_error(monkeypatch: pytest.MonkeyPatch, stream: io.TextIOWrapper | None) -> None:
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    console = Heard(live=False)
    console.handle(Printed("node-1", 1, "out\n"))
    console.close()


def test_text_that_the_stream_cannot_spell_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console = Heard(live=False)
    console.handle(Printed("node-1", 1, "caf\u00e9\n"))
    console.close()
    assert raw.getvalue() == b"[node-1] caf\\xe9\n"


def test_notes_are_logged_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="skyward"):
        console = Heard(live=True, stream=None)  # pytest's streams are no terminal
        console.handle(Note("beware", warning=True))
        console.handle(Note("by the way"))
        console.close()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "beware"),
        ("INFO", "by the way"),
    ]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("live", "logging_is_set_up", "shown"),
    [(True, False, "skyward: by the way\n"), (True, True, ""), (False, False, "")],
)
def test_notes_are_shown_where_a_log_would_keep_them_to_itself(
    live: bool, logging_is_set_up: bool, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under nohup: what is bought must not be a secret. With `console=False` it is quiet."""
    monkeypatch.setattr(logging.getLogger("skyward"), "hasHandlers", lambda: logging_is_set_up)
    console = Heard(live=live, stream=None)
    console.handle(Note("by the way"))
    console.close()
    assert capsys.readouterr() == ("", shown)


def test_no_terminal_no_line_no_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal() is None
    console = Heard(live=True)
    for event in (PoolStarted("p", "local", 1, 1), NodeReady("a", 1), TasksQueued(1), TaskEnded(1, 1, True)):
        console.handle(event)
    console.close()
    console.close()
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_does_not_read_never_holds_up_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            reading.wait(60)
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", stuck := Stuck())
    monkeypatch.setattr(sys, "stderr", told := io.StringIO())
    monkeypatch.setattr("skyward.console._MAX_PENDING", 10_000)
    console = Heard(live=False)
    for _ in range(1000):
        console.handle(Printed("node-1", 1, "x" * 1000))
    reading.set()
    console.close()
    assert stuck.getvalue().count("\n") < 100, "memory is bounded"
    assert "skyward: dropped" in told.getvalue()


# --- on a real terminal ---


def run_on_pty(
    script: str, *, stdout: int | None = None, width: int = 100, typed: tuple[str, str] = ("", ""), **env: str
) -> str:
    """What a Python script writes to a terminal that is its stderr, and its stdout if none is given.

    `typed` is what somebody types, and after which text.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(REPOSITORY), **env}
    environment.pop("NO_COLOR", None) if "NO_COLOR" not in env else None
    command = [sys.executable, "-c", textwrap.dedent(script)]
    out = theirs if stdout is None else stdout
    with subprocess.Popen(command, stdin=theirs, stdout=out, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = bytearray()
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError as error:
                if error.errno != errno.EIO:  # how Linux says that nobody has the terminal open any more
                    raise
                break
            if not data:
                break
            seen += data
            if typed[0] and typed[0].encode() in seen:
                os.write(ours, typed[1].encode())
                typed = "", ""
    os.close(ours)
    assert process.returncode == 0, seen.decode()
    return seen.decode()


EVENTS = """
    import sys, time
    from skyward.console import Console
    from skyward.core.events import *
    from skyward.core.facts import Facts

    facts = Facts()
    console = Console(live=True, facts=facts)

    def tell(event):
        if isinstance(event, Facts.kinds):
            facts.handle(event)
        console.handle(event)

    tell(PoolStarted("p", "local", 2, 1))
    tell(NodeStep("node-1", "connecting"))
    time.sleep(0.3)
    tell(NodeReady("node-1", 1))
    tell(NodeReady("node-2", 1))
    for _ in range(4):
        tell(TasksQueued(1))
    tell(Printed("node-1", 1, "from a task\\n"))
    sys.stdout.write("from the script\\n")  # print would write the end of the line apart
    time.sleep(0.3)
    for _ in range(4):
        tell(TaskEnded(1, 0.25, True))
    tell(Note("something is odd", warning=True))
    time.sleep(0.3)
    console.close()
    print("after")
"""


@pytest.mark.slow
def test_the_live_line_and_the_summary_on_a_terminal() -> None:
    seen = run_on_pty(EVENTS)
    assert re.search(r"nodes 0/2 \| connecting \| \d+ s", seen)
    assert "nodes 2/2 | slots 2/2 busy | tasks 0/4" in seen
    assert "\r\x1b[2K[node-1] from a task\r\n" in seen, "the line makes room"
    assert "\r\x1b[2Kfrom the script\r\n" in seen
    assert "skyward: warning: something is odd\r\n" in seen
    head, _, tail = seen.rpartition("\x1b[2K")
    assert tail.startswith("skyward local: 4 tasks in 0."), "the line is gone and the summary stays"
    assert "efficiency" in tail
    assert tail.endswith("after\r\n")
    assert head.rstrip("\r\n").endswith("\x1b[1A") or "\x1b[?25h" in head, "the cursor is shown again"


@pytest.mark.slow
def test_stdout_that_is_a_file_gets_all_and_only_its_own(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        seen = run_on_pty(EVENTS, stdout=out.fileno())
    assert sorted((tmp_path / "out").read_text().splitlines()) == ["[node-1] from a task", "after", "from the script"]
    assert "from the script" not in seen
    assert "tasks 0/4" in seen


@pytest.mark.slow
def test_no_color_is_respected() -> None:
    script = EVENTS.replace("TaskEnded(1, 0.25, True)", "TaskEnded(1, 0.25, False)")
    assert "\x1b[31m" in run_on_pty(script)
    plain = run_on_pty(script, NO_COLOR="1")
    assert "4 failed" in plain
    assert "\x1b[31m" not in plain


def test_a_dumb_terminal_gets_the_summary_only() -> None:
    seen = run_on_pty(EVENTS, TERM="dumb")
    assert "\x1b" not in seen
    assert "slots" not in seen
    assert "skyward local: 4 tasks" in seen


def test_two_consoles_share_one_terminal() -> None:
    seen = run_on_pty("""
        import sys
        from skyward.console import Console
        from skyward.core.events import Printed
        from skyward.core.facts import Facts
        before = sys.stdout
        first, second = Console(live=True, facts=Facts()), Console(live=True, facts=Facts())
        second.handle(Printed("node-9", 1, "of the second\\n"))
        second.close()
        first.close()
        assert sys.stdout is before
        third = Console(live=True, facts=Facts())
        assert third._line is not None
        third.close()
    """)
    assert "[node-9] of the second" in seen


def test_a_fork_writes_past_the_line() -> None:
    seen = run_on_pty("""
        import os
        from skyward.console import Console
        from skyward.core.facts import Facts
        console = Console(live=True, facts=Facts())
        if os.fork() == 0:
            print("from the child", flush=True)
            os._exit(0)
        os.wait()
        console.close()
    """)
    assert "from the child" in seen


@pytest.mark.slow
def test_a_pool_on_a_terminal() -> None:
    seen = run_on_pty("""
        import time
        import skyward as sky

        @sky.compute
        def work(i):
            print("hello from", i)
            time.sleep(0.3)
            return i

        if __name__ == "__main__":
            with sky.Compute(nodes=2, concurrency=2) as pool:
                assert sky.gather(*[work(i) for i in range(8)]) >> pool == list(range(8))
    """)
    assert "/2 | " in seen
    assert seen.count("hello from") == 8
    assert "] hello from" in seen, "marked with its node"
    assert "tasks in" in seen.splitlines()[-1]


@pytest.mark.slow
def test_nothing_is_painted_over_the_prompt_of_an_interpreter() -> None:
    seen = run_on_pty("""
        import sys, time
        import skyward as sky

        sys.ps1 = ">>> "
        pool = sky.Compute().start()
        print("at the prompt", flush=True)
        time.sleep(0.5)  # the line would be drawn four times
        assert pool.submit(pow, 2, 3).result() == 8
        print("closing", flush=True)
        pool.close()
    """)
    before, _, after = seen.partition("at the prompt")
    assert re.search(r"nodes [01]/1 ", before), "while the pool starts, or has just started, there is a line"
    assert re.fullmatch(r"\r\nclosing\r\nskyward local: 1 tasks in [^\r]*\r\n", after), after


@pytest.mark.slow
def test_nothing_is_painted_over_what_the_program_asks() -> None:
    """The line returns after the answer. pdb asks in the same way."""
    seen = run_on_pty(
        """
        import builtins, sys, threading, time
        import skyward as sky

        before = builtins.input
        with sky.Compute() as pool:
            assert pool.submit(pow, 2, 3).result() == 8
            time.sleep(0.3)
            threading.Timer(0.5, print, ["the line would have been drawn four times"]).start()
            print("Now ", end="")
            print("answer:", input("name? "))
            time.sleep(0.3)
        assert builtins.input is before
        """,
        typed=("four times", "Ada\n"),
    )
    start, asked, rest = seen.partition("Now name? ")
    assert asked, seen
    assert "local: nodes 1/1" in start
    while_asked, answer, after = rest.partition("answer: Ada")
    assert while_asked.startswith("the line would have been drawn four times\r\nAda\r\n")
    assert "local: nodes" not in while_asked.partition("Ada\r\n")[0]
    assert answer
    assert "local: nodes 1/1" in after


@pytest.mark.slow
@pytest.mark.parametrize("stderr_is_terminal", [True, False])
def test_a_pool_is_quiet_on_demand_and_without_a_terminal(stderr_is_terminal: bool) -> None:
    script = f"""
        import sys
        import skyward as sky
        with sky.Compute(console={not stderr_is_terminal}) as pool:
            pool.submit(print, "from a task").result()
        assert "rich" not in sys.modules
    """
    if stderr_is_terminal:
        assert run_on_pty(script).splitlines()[-1].endswith("] from a task")
    else:
        command = [sys.executable, "-c", textwrap.dedent(script)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
        assert done.stderr == ""
        assert done.stdout.endswith("] from a task\n")
