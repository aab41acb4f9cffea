"""Who is let in."""

from __future__ import annotations

import pytest

from skyward.dashboard.access import Admission, Gate

SECRET = "s3cr-et_"
GATE = Gate(SECRET, 4321)
COOKIE = f"other=1; skyward-4321={SECRET}"


def judge(path: str = "/", query: str = "", **headers: str) -> Admission:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return GATE.judge(path, query, {"host": "127.0.0.1:4321", **named})


def test_the_link_is_greeted_with_a_cookie_that_admits() -> None:
    assert judge(query=f"token={SECRET}") is Admission.GREET
    assert GATE.cookie == f"skyward-4321={SECRET}; Path=/; HttpOnly; SameSite=Lax"
    assert judge(cookie=COOKIE) is Admission.ADMIT
    assert judge("/feed", cookie=COOKIE) is Admission.ADMIT


@pytest.mark.parametrize("query", ["", "token=", "token=x", f"token={SECRET}x", "token=%ff%00", "tok", "token=ä"])
def test_nobody_else_is(query: str) -> None:
    assert judge(query=query) is Admission.NOT_KNOWN


@pytest.mark.parametrize(
    "cookie", ["", "skyward-4321=", "skyward-4321=x", f"skyward-4322={SECRET}", "=;;=", f'skyward-4321="{SECRET}x"']
)
def test_other_cookies_do_not_admit(cookie: str) -> None:
    assert judge(cookie=cookie) is Admission.NOT_KNOWN


def test_the_token_in_the_address_opens_the_page_only() -> None:
    """It stays in logs and histories."""
    assert judge("/feed", f"token={SECRET}") is Admission.NOT_KNOWN


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "localhost:4321", "LOCALHOST", "[::1]:4321"])
def test_names_of_this_machine(host: str) -> None:
    assert judge(host=host, cookie=COOKIE) is Admission.ADMIT


@pytest.mark.parametrize("host", ["", "evil.example", "evil.example:4321", "127.0.0.1.evil.example", "10.0.0.5:4321"])
def test_a_name_that_was_bound_to_our_address_is_refused(host: str) -> None:
    assert judge(host=host, cookie=COOKIE) is Admission.WRONG_HOST
    assert judge(query=f"token={SECRET}", host=host) is Admission.WRONG_HOST


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_may_link_to_the_page_and_nothing_else(site: str) -> None:
    assert judge(query=f"token={SECRET}", sec_fetch_site=site) is Admission.GREET
    assert judge("/feed", cookie=COOKIE, sec_fetch_site=site) is Admission.OTHER_SITE
    assert judge("/feed", cookie=COOKIE, sec_fetch_site="same-origin") is Admission.ADMIT
