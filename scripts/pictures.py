"""Makes the pictures of the documentation: the live page in Chromium, and a terminal beside it. ``make pictures``.

Those of docs/howto/dashboard.md show the scenes of tests/dashboard/scenes.py, so they differ only when the page does.
The README's shows a real pool on this machine: its page, and what its program shows in a terminal at the same moment.
"""

from __future__ import annotations

import base64
import html
import os
import pty
import re
import select
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser

from skyward.dashboard.feed import Feed
from skyward.dashboard.page_file import report
from tests.dashboard.browser import Look, chromium, found, opened
from tests.dashboard.scenes import SCENES

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "docs" / "pictures"
_MAX_BYTES = 150_000  # of a picture
_SIZE = (1120, 700)  # of the window
_COLUMNS, _ROWS = 86, 17
_SECONDS = 14  # after which the picture of the README is taken

PROGRAM = """\
import random, time
import skyward as sky

def fit_and_score(number):
    chance = random.Random(number)
    time.sleep(chance.uniform(0.1, 0.9))
    if number % 97 == 40:
        raise ValueError(f"C={-number} is not positive")
    if number % 60 == 5:
        print(f"C={10 ** chance.randint(-2, 2):g}: {chance.uniform(0.8, 0.99):.3f}")

def permute(number):
    time.sleep(random.Random(number).uniform(0.05, 0.3))

with sky.Compute(nodes=4, concurrency=4, dashboard=41207) as pool:
    futures = [pool.submit(fit_and_score if i % 3 else permute, i) for i in range(1400)]
    for future in futures:
        future.exception()
"""

TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; width: 1280px; height: 800px; background: #dfe4ec; position: relative; overflow: hidden;
       font-family: system-ui, "DejaVu Sans", sans-serif; }}
img {{ position: absolute; left: 22px; top: 20px; width: 1120px; border-radius: 10px;
       box-shadow: 0 6px 26px rgb(20 30 50 / 28%); }}
.terminal {{ position: absolute; right: 24px; bottom: 22px; background: #11161d; color: #dfe5ee; border-radius: 10px;
       box-shadow: 0 10px 34px rgb(10 15 25 / 55%); overflow: hidden; }}
.bar {{ background: #1d2530; padding: 9px 12px; display: flex; gap: 7px; font-size: 12px; color: #93a0b2; }}
.bar i {{ width: 11px; height: 11px; border-radius: 50%; background: #3b4757; }}
.bar span {{ margin-left: 8px; }}
pre {{ margin: 0; padding: 12px 15px 14px; font: 12.5px/1.42 "DejaVu Sans Mono", monospace; }}
b {{ color: #58aef5; font-weight: 400; }}
</style><img src="data:image/png;base64,{page}">
<div class="terminal"><div class="bar"><i></i><i></i><i></i><span>study.py</span></div><pre>{text}</pre></div>"""


def smaller(png: bytes) -> bytes:
    """The same picture, compressed as well as zlib can; the browser is in a hurry."""
    at, head, data = 8, [], b""
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        if kind == b"IDAT":
            data += content
        elif kind != b"IEND":
            head.append((kind, content))
        at += 12 + length
    chunks = [*head, (b"IDAT", zlib.compress(zlib.decompress(data), 9)), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return png[:8] + b"".join(packed)


def keep(name: str, png: bytes) -> None:
    """Write a picture."""
    packed = smaller(png)
    if len(packed) > _MAX_BYTES:
        raise SystemExit(f"{name} has {len(packed):,} bytes, more than {_MAX_BYTES:,}: show less in it")
    (FOLDER / f"{name}.png").write_bytes(packed)
    print(f"{name}.png {len(packed):,} bytes")


def scene_file(folder: Path, name: str) -> str:
    """A report on a scene, as an address."""
    scene = SCENES[name]()
    feed = Feed(scene.recording, scene.status.name, 1.79e9)
    path = folder / f"{name}.html"
    path.write_text(report(feed.whole(scene.status, scene.now, scene.state)), "utf-8")
    return path.as_uri()


def shot(look: Look, selector: str | None = None) -> bytes:
    """Take a picture of the window, or of one element."""
    look.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return look.page.locator(selector).screenshot() if selector else look.page.screenshot()


def node(look: Look) -> None:
    """Open a node in detail."""
    look.page.locator(".node").nth(1).click()


def failures(look: Look) -> None:
    """Open the first failure."""
    look.page.locator(".failure summary").first.click()


VIEWS: dict[str, tuple[str, str, bool, str | None, Callable[[Look], None] | None]] = {
    # picture -> scene, theme, whether on a phone, element, what is done first
    "page-light": ("search", "light", False, None, None),
    "page-dark": ("search", "dark", False, None, None),
    "page-thousand": ("thousand", "light", False, None, None),
    "page-draining": ("draining", "light", False, None, None),
    "page-phone": ("gpus", "dark", True, None, None),
    "page-starting": ("starting", "light", False, None, None),
    "page-idle": ("idle", "dark", False, None, None),
    "page-node": ("gpus", "light", False, "#node", node),
    "page-failures": ("failing", "light", False, ".reports", failures),
    "page-failures-dark": ("failing", "dark", False, ".reports", failures),
}


def scenes(browser: Browser, folder: Path) -> None:
    """The pictures of docs/howto/dashboard.md."""
    for name, (scene, theme, phone, selector, act) in VIEWS.items():
        with opened(browser, scene_file(folder, scene), theme=theme, phone=phone, size=_SIZE) as look:
            if act is not None:
                act(look)
            keep(name, shot(look, selector))


def screen(text: str) -> list[str]:
    """The lines that a terminal shows of what was written to it, as far as our console uses its commands."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\??[0-9;]*[A-Za-z]|\x1b[=>78]|[\r\n]|[^\x1b\r\n]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif not part.startswith("\x1b"):
            old = lines[row].ljust(column)
            lines[row], column = old[:column] + part + old[column + len(part) :], column + len(part)
        elif part.endswith("A"):
            row = max(0, row - int(part[2:-1] or 1))
        elif part.endswith("K"):
            lines[row] = "" if part[2:-1] == "2" else lines[row][:column]
    return lines


def program(folder: Path) -> tuple[int, int]:
    """Start the program in a terminal of its own; its number, and the terminal's other end."""
    path = folder / "study.py"
    path.write_text(PROGRAM, "utf-8")
    pid, end = pty.fork()
    if pid == 0:
        settings = {"COLUMNS": str(_COLUMNS), "LINES": str(_ROWS), "TERM": "xterm", "PYTHONPATH": str(REPOSITORY)}
        os.execve(sys.executable, [sys.executable, str(path)], {**os.environ, **settings})
    return pid, end


def together(browser: Browser, folder: Path) -> None:
    """The picture of the README."""
    pid, end = program(folder)
    try:
        written = ""
        while "token=" not in written or written.endswith("="):
            written += os.read(end, 65536).decode(errors="replace")
        link = re.findall(r"http://127\S+", written)[0]
        with opened(browser, link, size=_SIZE) as look:
            until = time.monotonic() + _SECONDS
            while time.monotonic() < until:
                look.page.wait_for_timeout(50)
                while select.select([end], [], [], 0)[0]:
                    written += os.read(end, 65536).decode(errors="replace")
            page = shot(look)
        shown = [line.rstrip()[:_COLUMNS] for line in screen(written)]
        shown = [re.sub(r"token=.*", "token=…", line) for line in shown if line]
        text = "\n".join(["$ python study.py", *shown[:1], *shown[1:][-(_ROWS - 4) :]])
        marked = re.sub(r"^(\[node-\d+\]|\$)", r"<b>\1</b>", html.escape(text), flags=re.MULTILINE)
        both = folder / "both.html"
        both.write_text(TERMINAL.format(page=base64.b64encode(page).decode(), text=marked), "utf-8")
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        window = context.new_page()
        window.goto(both.as_uri())
        keep("page-and-terminal", window.screenshot())
        context.close()
    finally:
        os.kill(pid, signal.SIGINT)
        while os.waitpid(pid, os.WNOHANG)[0] == 0:  # it writes until it ends, and must not wait for a reader
            if select.select([end], [], [], 0.05)[0]:
                try:
                    os.read(end, 65536)
                except OSError:  # nobody is at the other end any more
                    time.sleep(0.05)
        os.close(end)


def main() -> None:
    """Make all pictures, or those whose names are given."""
    if found() is None:
        raise SystemExit("there is no Chromium here; install Debian's package chromium")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        if "--live" not in sys.argv:
            scenes(browser, Path(folder))
        if "--scenes" not in sys.argv:
            together(browser, Path(folder))


if __name__ == "__main__":
    main()
