"""The page as a file: nothing is loaded from elsewhere, and text can't break out of its place."""

from __future__ import annotations

import base64
import hashlib
import json
import re

from skyward.dashboard.page_file import live_page, report


def inline(html: str, tag: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_the_policy_allows_its_own_style_and_script_only() -> None:
    page = live_page()
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(inline(page.html, tag).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.policy
    assert page.policy.startswith("default-src 'none'")
    assert "connect-src 'self'" in page.policy
    assert "unsafe" not in page.policy


def test_nothing_comes_from_elsewhere() -> None:
    html = live_page().html
    addresses = set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"']*""", html))
    assert addresses == {"http://www.w3.org/2000/svg"}, "a name of XML, which nobody opens"
    assert not re.search(r"""\s(?:src|srcset)=|@import|url\(""", html)


def test_no_text_becomes_html() -> None:
    script = inline(live_page().html, "script")
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert way not in script
    assert not re.search(r"""\son\w+=["']""", live_page().html), "handlers in attributes"


def test_a_report_holds_its_message_whatever_that_holds() -> None:
    nasty = {"text": "</script><script>alert(1)</script><!-- /* style */ /* script */ <script>", "more": "\u2028'\""}
    html = report(json.dumps(nasty))
    (data,) = re.findall(r'<script type="application/json" id="recording">(.*?)</script>', html, flags=re.DOTALL)
    assert json.loads(data) == nasty
    assert html.count("<script") == live_page().html.count("<script")
    assert "Content-Security-Policy" in html
    assert "connect-src" not in html


def test_every_element_that_the_script_looks_for_is_there() -> None:
    html = live_page().html
    ids = set(re.findall(r'\sid="([\w-]+)"', html))
    wanted = set(re.findall(r'find\("([\w-]+)"\)', inline(html, "script")))
    assert wanted - ids == set()
    assert len(wanted) > 30
