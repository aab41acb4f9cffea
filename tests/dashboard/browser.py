"""A real Chromium for tests and pictures of the page."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Error, Page, sync_playwright

__all__ = ["NAMES", "Look", "chromium", "found", "opened"]

NAMES = ("chromium", "chromium-browser", "google-chrome")
_KNOWN = "(() => {{ const {{ model, page, stream }} = window.skyward; return {}; }})()"


def found() -> str | None:
    """The program, if this machine has it."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found(), args=["--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


class Look:
    """A page that is open, and what went wrong in it.

    Attributes
    ----------
    page
        Playwright's.
    errors
        What the page said in the browser's console, and what it could not do.
    asked
        Addresses that it asked for.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.asked: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", self._failed)
        page.on("request", lambda request: self.asked.append(request.url))

    def _said(self, message: ConsoleMessage) -> None:
        self.errors.append(message.text)

    def _failed(self, error: Error) -> None:
        self.errors.append(f"{error}: {error.stack}")

    def model(self, expression: str) -> Any:
        """The value of an expression in JavaScript that may use ``model``, ``page`` and ``stream``."""
        return self.page.evaluate(_KNOWN.format(expression))

    def wait(self, condition: str, seconds: float = 120) -> None:
        """Wait until such an expression is true."""
        _until(self.page, _KNOWN.format(condition), seconds)


def _until(page: Page, condition: str, seconds: float = 120) -> None:
    """Not `wait_for_function`, which evaluates text inside the page, and its policy forbids that."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        if time.monotonic() > end:
            raise TimeoutError(condition)
        page.wait_for_timeout(30)


@contextlib.contextmanager
def opened(
    browser: Browser,
    address: str,
    *,
    theme: str = "light",
    phone: bool = False,
    size: tuple[int, int] = (1440, 900),
) -> Iterator[Look]:
    """Open a page.

    Parameters
    ----------
    browser
        Where.
    address
        Of the page, or of a report's file.
    theme
        Which one the system prefers: ``"light"`` or ``"dark"``.
    phone
        Whether the window is as small as a phone's.
    size
        Width and height of the window otherwise.
    """
    context = browser.new_context(
        viewport={"width": 360, "height": 740} if phone else {"width": size[0], "height": size[1]},
        color_scheme=theme,  # type: ignore[arg-type]
        has_touch=phone,
        reduced_motion="reduce",
    )
    try:
        look = Look(context.new_page())
        look.page.goto(address)
        _until(look.page, "Boolean(window.skyward) && window.skyward.page.applied > 0")
        yield look
    finally:
        context.close()
