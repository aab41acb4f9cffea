"""The server beside a pool: who is let in, what it sends, and that it ends with the pool."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import skyward as sky
from skyward.core.events import Note, PoolReady, Printed
from skyward.core.facts import Facts
from skyward.dashboard.serving import Page


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page("sky-1", 0, Facts())
    made.start()
    yield made
    made.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("skyward-page")]


def port_of(link: str) -> int:
    port = urllib.parse.urlsplit(link).port
    assert port is not None
    return port


def get(link: str, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(link), timeout=30)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return connection.getresponse()


def cookie_of(link: str) -> str:
    parts = urllib.parse.urlsplit(link)
    answer = get(link, f"{parts.path}?{parts.query}")
    assert (answer.status, answer.headers["location"]) == (303, "/")
    return answer.headers["set-cookie"].partition(";")[0]


def messages(link: str, cookie: str) -> Iterator[dict[str, Any]]:
    answer = get(link, "/feed", cookie=cookie)
    assert (answer.status, answer.headers.get_content_type()) == (200, "text/event-stream")
    for line in answer:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


def test_the_link_leads_to_the_page(page: Page) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", page.link)
    answer = get(page.link, "/", cookie=cookie_of(page.link))
    assert answer.status == 200
    assert b"Task stream" in answer.read()
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers


@pytest.mark.parametrize("path", ["/", "/feed", "/report", "/?token=x", "/nothing"])
def test_nobody_without_the_token_learns_anything(page: Page, path: str) -> None:
    answer = get(page.link, path)
    assert answer.status == 403
    assert b"use the link that the pool printed" in answer.read()


def test_other_hosts_and_sites_are_refused(page: Page) -> None:
    cookie = cookie_of(page.link)
    assert get(page.link, "/", cookie=cookie, host="evil.example").status == 403
    assert get(page.link, "/feed", cookie=cookie, sec_fetch_site="same-site").status == 403
    assert get(page.link, "/nothing", cookie=cookie).status == 404


def test_nothing_but_reading(page: Page) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(page.link), timeout=30)
    connection.request("POST", "/", headers={"cookie": cookie_of(page.link)})
    assert connection.getresponse().status == 405


def test_only_this_machine_reaches_it(page: Page) -> None:
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.settimeout(10)
        other.connect(("127.0.0.2", port_of(page.link)))


def test_what_arises_is_sent(page: Page) -> None:
    stream = messages(page.link, cookie_of(page.link))
    first = next(stream)
    assert (first["whole"], first["state"], first["pool"]["name"]) == (True, "starting", "sky-1")
    page.handle(PoolReady(1, 0.5))
    page.handle(Printed("a", 1, "<b>hello</b>\n"))
    page.handle(Note("careful", warning=True))
    told = next(message for message in stream if "lines" in message)
    assert told["state"] == "running"
    assert told["lines"][0][1:] == ["out", "a", "<b>hello</b>"]
    assert told["log"][0][1:] == ["warning", "", "careful"]
    page.close()
    assert [message["state"] for message in stream][-1:] == ["ended"]


def test_a_port_that_is_taken(page: Page) -> None:
    port = port_of(page.link)
    with pytest.raises(sky.ConfigError, match=rf"dashboard={port}: port {port} of 127.0.0.1 can't be used \(Address"):
        Page("sky-2", port, Facts())
    with pytest.raises(sky.ConfigError, match="give another one, or dashboard=True"), sky.Compute(dashboard=port):
        pytest.fail("nothing starts")


def test_a_report_is_a_file_of_its_own(page: Page, tmp_path: Path) -> None:
    page.handle(Printed("a", 1, "</script><script>alert(1)</script>\n"))
    page.close()
    page.save(str(tmp_path / "run.html"))
    page.save(str(tmp_path / "run.html"))
    assert [each.name for each in tmp_path.iterdir()] == ["run.html"]
    text = (tmp_path / "run.html").read_text("utf-8")
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert text.rstrip().endswith("</html>")


def test_it_may_be_closed_without_a_start_and_twice() -> None:
    page = Page("sky-1", 0, Facts())
    port = port_of(page.link)
    page.close()
    page.close()
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


@pytest.mark.slow
def test_a_pool_with_a_page(tmp_path: Path) -> None:
    said: list[str] = []
    pool = sky.Compute(concurrency=2, dashboard=True)
    pool.events.subscribe(lambda event: said.append(event.text) if isinstance(event, Note) else None)
    with pytest.raises(sky.ConfigError, match="nothing was recorded"):
        sky.Compute().save_report(tmp_path / "none.html")
    with pool:
        link = pool.dashboard_link
        assert f"live page: {link}" in said
        stream = messages(link, cookie_of(link))
        assert next(stream)["state"] == "running"
        assert pool.submit(pow, 2, 10).result() == 1024
        blocks: list[list[int]] = next(message["blocks"] for message in stream if "blocks" in message)
        assert blocks[5] == [1]
    assert [message["state"] for message in stream][-1:] == ["ended"]
    with pytest.raises(OSError, match="refused"):
        get(link, "/")
    assert pool.save_report(tmp_path / "run.html").stat().st_size > 50_000
    with pytest.raises(sky.PoolNotActive):
        _ = pool.dashboard_link


@pytest.mark.slow
def test_a_page_that_is_wanted_later() -> None:
    with sky.Compute(concurrency=1) as pool:
        pool.submit(pow, 2, 10).result()
        link = pool.dashboard_link
        assert pool.dashboard_link == link
        first = next(messages(link, cookie_of(link)))
        assert first["state"] == "running"
        assert first["status"]["tasks"][2] == 1, "what was done before is counted"
        assert [node["state"] for node in first["nodes"]] == ["ready"]


PROGRAM = """
import sys, time
import skyward as sky
with sky.Compute(concurrency=1, dashboard=True) as pool:
    print(pool.dashboard_link, flush=True)
    pool.submit(time.sleep, 600).result()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_program_that_is_ended(how: signal.Signals) -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert program.stdout is not None
    link = program.stdout.readline().decode().strip()
    stream = messages(link, cookie_of(link))  # a browser is there, which must not hold it up
    next(stream)
    os.kill(program.pid, how)
    assert program.wait(60) != 0
    program.stdout.close()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            get(link, "/").close()
        except OSError:
            return
        time.sleep(0.01)
    pytest.fail("somebody still listens")


_WITHOUT = """
import sys, threading
import skyward as sky
from skyward.core.events import TaskEnded
with sky.Compute(console=False) as pool:
    assert pool.submit(pow, 2, 2).result() == 4
    listeners = [each.__self__ for each in pool.events._listeners_for(TaskEnded)]
    assert listeners == [pool._open.facts], "nobody but the facts"
    assert not [name for name in sys.modules if name.startswith(("skyward.dashboard", "starlette", "uvicorn"))]
    assert not [each for each in threading.enumerate() if "page" in each.name]
"""


@pytest.mark.slow
def test_a_pool_without_a_page_has_nothing_of_it() -> None:
    subprocess.run([sys.executable, "-c", _WITHOUT], check=True, timeout=120)
