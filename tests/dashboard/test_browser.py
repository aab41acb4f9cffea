"""The page in a real Chromium. Skipped where there is none; install Debian's package chromium to run them."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

import skyward as sky
from skyward.dashboard.feed import Feed
from skyward.dashboard.page_file import report
from tests.dashboard.browser import NAMES, Look, chromium, found, opened
from tests.dashboard.scenes import SCENES
from tests.lab import eventually
from tests.lab.fixtures import LabHosts
from tests.remote import Reach, index, reach, wheels

__all__ = ["index", "reach", "wheels"]  # fixtures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(found() is None, reason=f"no browser: none of {', '.join(NAMES)} is installed"),
]

NASTY = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\x1b[31m&lt;"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@contextlib.contextmanager
def pages(browser: Browser, **arguments: Any) -> Iterator[tuple[sky.Compute, Look]]:
    """A pool and its page."""
    given = {"console": False, "dashboard": True, **arguments}
    with sky.Compute(**given) as pool, opened(browser, pool.dashboard_link) as look:
        yield pool, look


@pytest.fixture
def file(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Address of a report on a scene."""
    scene = SCENES[request.param]()
    text = report(Feed(scene.recording, scene.status.name, 1.79e9).whole(scene.status, scene.now, scene.state))
    path = tmp_path / f"{request.param}.html"
    path.write_text(text, "utf-8")
    return path.as_uri()


def task(number: int) -> int:
    import time

    time.sleep(0.002)
    if number % 100 == 7:
        raise ValueError(f"{number} is a bad number; {NASTY}")
    if number % 100 == 8:
        print(NASTY, number)
    return number


def slow_task(number: int) -> int:
    import time

    time.sleep(0.05)
    return number


def wait_for_file(go: Path) -> None:
    while not go.exists():
        time.sleep(0.01)


for function in (task, slow_task):  # hosts don't have this module
    function.__module__ = "__main__"


def test_two_thousand_tasks_are_followed_to_the_end(browser: Browser, tmp_path: Path) -> None:
    with pages(browser, nodes=2, concurrency=2) as (pool, look):
        assert look.page.url.endswith("/"), "the token is not in the address"
        futures = [pool.submit(task, number) for number in range(2000)]
        look.wait("model.status.tasks[2] > 0 && model.blocks > 0")
        assert sum(future.exception() is None for future in futures) == 1980
        look.wait("model.status.tasks[2] === 1980 && model.status.tasks[3] === 20")
        drawn = "model.rows.filter(Boolean).flatMap((row) => row.counts).reduce((a, b) => a + b, 0)"
        look.wait(f"{drawn} === 2000")
        assert look.model("model.labels") == ["task"]
        text = look.page.inner_text("#progress-text")
        assert text.replace("\n", "") == "100%1,980 of 2,000 tasks done, 20 failed"
        assert look.page.inner_text("#functions .number >> nth=0") == "1,980 / 2,000"
        assert look.page.inner_text("#failures-count") == "20"
        look.page.click(".failure summary")
        trace = look.page.inner_text(".failure pre >> nth=0")
        assert trace.count("Traceback") == 1
        assert trace.rstrip().endswith("task(7)")
        assert NASTY.replace("\x1b", r"\x1b") in trace
        look.page.click("#tab-output")
        said = look.page.inner_text("#output")
        assert "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>&lt; 8" in said
        with look.page.expect_download() as download:
            look.page.click("#save")
        assert download.value.suggested_filename == f"{pool.name}.html"
        download.value.save_as(tmp_path / "saved.html")
        assert "bad number" in (tmp_path / "saved.html").read_text("utf-8")
        saved = pool.save_report(tmp_path / "run.html")
        pool.close()
        look.wait("model.state === 'ended'")
        assert look.page.inner_text("#state") == "Ended"
        assert look.page.evaluate("window.hacked") is None
        assert look.errors == []
        assert [each for each in look.asked if not re.match(r"http://127\.0\.0\.1:|data:", each)] == []
    with opened(browser, saved.as_uri()) as look:
        assert look.page.inner_text("#failures-count") == "20"
        assert look.page.evaluate("window.hacked") is None
        assert look.errors == []
        assert look.asked[0] == saved.as_uri()
        assert [each for each in look.asked[1:] if not each.startswith("data:")] == []


def test_what_runs_is_seen_before_it_ends(browser: Browser, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with pages(browser, concurrency=1) as (pool, look):
        future = pool.submit(wait_for_file, go)
        look.wait("model.running.size === 1 && model.now - model.running.get(0).start > 1000")
        box = look.page.locator("#stream-view").bounding_box()
        assert box is not None
        look.page.mouse.move(box["x"] + look.model("stream.x(model.now - 500)"), box["y"] + 14)
        told = look.page.inner_text("#tip")
        assert re.match(r"wait_for_file\nrunning for \d.* since \d+:\d\d", told), told
        go.touch()
        future.result()
        look.wait("model.running.size === 0 && model.blocks === 1")
        assert look.errors == []


def test_a_node_that_is_killed_is_seen(browser: Browser) -> None:
    with pages(browser, nodes=2, concurrency=2) as (pool, look):
        futures = [pool.submit(slow_task, number) for number in range(100)]
        look.wait("model.blocks > 3")
        (provider,) = pool.providers
        os.kill(int(provider.machines(pool.name)[0].id.rpartition("-")[2]), signal.SIGKILL)
        look.wait("model.status.lost === 1")
        look.wait("[...model.nodes.values()].some((node) => node.state === 'lost' && node.until !== null)")
        assert [future.result(60) for future in futures] == list(range(100))
        look.wait("model.status.tasks[2] === 100")
        lost = look.page.locator(".node", has=look.page.locator(".dot.lost"))
        assert lost.count() == 1
        assert "lost:" in lost.inner_text()
        lost.click()
        assert look.page.inner_text("#node-state") == "lost"
        assert look.page.inner_text("#node-detail") != ""
        look.page.keyboard.press("Escape")
        look.page.click("#tab-log")
        assert "lost:" in look.page.inner_text("#log")
        assert look.errors == []


@pytest.mark.lab
def test_hosts_are_followed_and_one_that_is_unplugged_is_seen(
    browser: Browser, lab_hosts: LabHosts, reach: Reach
) -> None:
    hosts = lab_hosts(2)
    with pages(browser, **reach(hosts), concurrency=2) as (pool, look):
        futures = [pool.submit(slow_task, number) for number in range(120)]
        look.wait("model.blocks > 3")
        machines = look.model("[...model.nodes.values()].map((node) => node.machine[0])")
        assert machines == ["ssh", "ssh"]
        look.wait("[...model.nodes.values()].every((node) => node.loads.length > 0)")
        hosts[0].kill()
        look.wait("model.status.lost === 1", 180)
        eventually(lambda: all(future.done() for future in futures), 180, "all tasks end")
        look.wait("model.status.tasks[2] === 120")
        assert look.errors == []


def test_a_connection_that_is_lost_is_said_and_taken_up_again(browser: Browser) -> None:
    with (
        sky.Compute(concurrency=1, console=False, dashboard=True) as pool,
        opened(browser, pool.dashboard_link) as look,
    ):
        look.page.context.set_offline(True)
        look.page.evaluate("window.skyward.page.source.close(), window.skyward.page.connect()")
        look.wait("page.broken")
        assert look.page.inner_text("#state").startswith("Connection lost")
        pool.submit(slow_task, 1).result()
        look.page.context.set_offline(False)
        look.wait("!page.broken && model.status.tasks[2] === 1")
        assert look.page.inner_text("#state") == "Ready"


@pytest.mark.parametrize("file", ["search", "failing", "gpus", "starting", "idle", "tiny"], indirect=True)
@pytest.mark.parametrize("phone", [False, True], ids=["wide", "phone"])
def test_each_scene_fits_its_window(browser: Browser, file: str, phone: bool) -> None:
    with opened(browser, file, phone=phone, theme="dark" if phone else "light") as look:
        assert look.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert look.model("document.documentElement.dataset.theme") == ("dark" if phone else "light")
        assert look.errors == []


@pytest.mark.parametrize("file", ["search"], indirect=True)
def test_everything_is_reached_by_keyboard(browser: Browser, file: str) -> None:
    with opened(browser, file) as look:
        press = look.page.keyboard.press
        press("t")
        assert look.model("document.documentElement.dataset.theme") == "dark"
        press("s")
        span = look.model("stream.to - stream.from")
        press("+")
        assert look.model("stream.to - stream.from") == pytest.approx(span / 2)
        before = look.model("stream.from")
        press("ArrowLeft")
        assert look.model("stream.from") < before
        for _ in range(3):
            press("n")
        said = look.page.inner_text("#stream-said")
        assert re.search(r"\w+, .* from \d+:\d\d\.\d, (failed, )?node-\d+, slot \d", said)
        press("Enter")
        assert look.page.is_visible("#node-facts")
        assert look.page.inner_text("#node-name") in said
        press("Escape")
        assert not look.page.is_visible("#node-facts")
        press("0")
        look.wait(f"Math.abs(stream.to - stream.from - {span}) < 1")  # from the next frame on
        press("/")
        look.page.keyboard.type("lost")
        assert look.page.locator(".node:visible").count() == 1
        look.page.fill("#nodes-filter", "")
        look.page.focus("#nodes-view")
        for key in ("ArrowDown", "ArrowDown", "End", "Enter"):
            press(key)
        assert look.page.inner_text("#node-name") == "node-21"
        press("Escape")
        look.page.focus("#tab-failures")
        press("ArrowRight")
        assert look.page.is_visible("#output")
        press("?")
        assert look.page.is_visible("#keys-list")
        assert look.errors == []


@pytest.mark.parametrize("file", ["search"], indirect=True)
def test_a_block_tells_what_it_is_and_functions_can_be_seen_alone(browser: Browser, file: str) -> None:
    with opened(browser, file) as look:
        box = look.page.locator("#stream-view").bounding_box()
        assert box is not None
        look.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 14)
        assert re.search(r"from 0:\d\d\.\d", look.page.inner_text("#tip"))
        look.page.locator("#legend button").first.click()
        assert look.model("stream.only") == 0
        assert look.page.get_attribute("#legend button >> nth=0", "aria-pressed") == "true"
        assert look.errors == []


@pytest.mark.parametrize("file", ["draining"], indirect=True)
def test_what_was_sent_to_a_node_and_that_it_drains_is_seen(browser: Browser, file: str) -> None:
    with opened(browser, file) as look:
        box = look.page.locator("#stream-view").bounding_box()
        assert box is not None
        x, y = look.model("[stream.x(stream.nodes[1].transfers[1].start + 500), stream.nodes[1].top + 2]")
        look.page.mouse.move(box["x"] + x, box["y"] + y)
        assert look.page.locator("#tip").inner_text().split("\n") == [
            "240 MB sent to node-2",
            "in 2.4 s from 0:23.5",
            "from node-1",
        ]
        assert look.page.locator("#state").inner_text() == "Draining"
        assert look.page.locator("#nodes-note").inner_text() == "4 draining"
        look.page.locator(".node").nth(1).click()
        assert "720 MB in 3 transfers" in look.page.locator("#node-facts").inner_text()


@pytest.mark.parametrize("file", ["thousand"], indirect=True)
def test_a_thousand_nodes_are_drawn_in_no_time(browser: Browser, file: str) -> None:
    with opened(browser, file) as look:
        assert look.page.locator(".node").count() < 40, "only those in view are elements"
        for _ in range(20):
            look.page.evaluate("document.getElementById('stream-view').scrollBy(0, 700)")
            look.page.evaluate("document.getElementById('nodes-view').scrollBy(0, 1700)")
            look.page.evaluate("new Promise(requestAnimationFrame)")
        frames = sorted(look.model("page.frames"))
        print("frames:", [round(each, 1) for each in frames], file=sys.stderr)
        # A frame's 16 ms, and what a machine that does other things may add.
        assert frames[len(frames) // 2] < 150
        began = time.monotonic()
        look.model("page.take({ now: model.now + 1000, state: 'running', status: model.status })")
        assert time.monotonic() - began < 10
        assert look.errors == []


# What the colour-blind see of linear RGB: Machado, Oliveira and Fernandes 2009, for severity 1.
BLIND = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def linear(colour: str) -> list[float]:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def lab_colour(rgb: list[float]) -> tuple[float, float, float]:
    """CIE L*a*b* of linear RGB."""
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(w * c for w, c in zip(row, rgb, strict=True)) for row in to_xyz]
    parts = [max(0.0, v / white) for v, white in zip(xyz, (0.9505, 1.0, 1.089), strict=True)]
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in parts)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("file", ["idle"], indirect=True)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_colour_blind_tell_functions_apart(browser: Browser, file: str, theme: str) -> None:
    with opened(browser, file, theme=theme) as look:
        palette = look.page.evaluate("window.skyward.look.palette")[:6]
    for name, matrix in BLIND.items():
        seen = []
        for colour in palette:
            rgb = linear(colour)
            seen.append(lab_colour([sum(w * c for w, c in zip(row, rgb, strict=True)) for row in matrix]))
        apart = min(math.dist(one, other) for one, other in itertools.combinations(seen, 2))
        assert apart > 9, f"{name}: {apart:.0f}"


def contrast(one: str, other: str) -> float:
    """As WCAG defines it."""

    def light(colour: str) -> float:
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("file", ["idle"], indirect=True)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_legible(browser: Browser, file: str, theme: str) -> None:
    with opened(browser, file, theme=theme) as look:
        style = "getComputedStyle(document.documentElement)"
        names = ["text", "muted", "bad", "warn", "accent", "panel", "back"]
        colours = look.model(f"Object.fromEntries({names}.map((n) => [n, {style}.getPropertyValue('--' + n).trim()]))")
        weak = {
            (name, under): contrast(colours[name], colours[under])
            for name in names[:5]
            for under in names[5:]
            if contrast(colours[name], colours[under]) < 4.5
        }
        assert weak == {}
