"""Whatever a provider does, an error of ours or a result of the promised type comes out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from skyward.core.errors import CloudError, NoCapacity
from skyward.core.machines.provider_calls import ProviderCalls, checked_list
from skyward.core.spec import Offer


def ask(function: Callable[..., object], *args: object) -> object:
    async def main() -> object:
        calls = ProviderCalls()
        try:
            return await calls.ask("moon", function, *args)
        finally:
            calls.close()

    return asyncio.run(main())


def test_calls_run_in_threads_of_their_own() -> None:
    assert str(ask(lambda: threading.current_thread().name)).startswith("skyward-provider")


def test_our_own_errors_stay_as_they_are() -> None:
    with pytest.raises(NoCapacity, match=r"^none$"):
        ask(raiser(NoCapacity("none")))


@pytest.mark.parametrize("error", [OSError("broken"), SystemExit(3), KeyboardInterrupt()])
def test_all_other_errors_leave_open_what_was_done(error: BaseException) -> None:
    with pytest.raises(CloudError, match=f"^moon: {type(error).__name__}: ") as caught:
        ask(raiser(error))
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("wrong", [None, 7, [Offer("small"), "large"], {Offer("small")}])
def test_what_is_no_list_of_the_promised_type_is_an_error(wrong: object) -> None:
    with pytest.raises(CloudError, match=r"moon: TypeError: it returned .* instead of a list of Offers"):
        ask(checked_list, Offer, lambda: wrong)


def test_an_empty_list_is_one() -> None:
    assert ask(checked_list, Offer, list) == []


def raiser(error: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail
