"""What counts of scikit-learn's objects when a call is compared with those of an earlier run."""

from __future__ import annotations

from typing import Any

from skyward.core.tasks.several_calls import STAND_INS, Call, NoIdentity

__all__ = ["install", "what_counts"]

_SAID = ("caller", "candidate_progress", "split_progress")
_FIT = "sklearn.model_selection._validation", "_fit_and_score"


def install() -> None:
    """Add them to core's table; may be repeated."""
    STAND_INS["sklearn.callback._callback_context", "CallbackContext"] = _of_context
    for module in ("sklearn.utils.parallel", "sklearn.utils.fixes"):
        STAND_INS[module, "_FuncWrapper"] = _of_wrapper


def _of_context(context: Any) -> object:
    """Nothing counts: since 1.9 each fit has a context with a random number and the time, also without callbacks."""
    if getattr(context, "_callbacks", None):
        raise NoIdentity("it has callbacks of scikit-learn's, which are to see each fit")
    return None


def _of_wrapper(wrapper: Any) -> object:
    """The function and scikit-learn's configuration, but of the warnings' filters only those that raise.

    Users who silence warnings on the second day don't want to compute the first day's results again.
    """
    state = dict(vars(wrapper))
    filters = state.pop("warning_filters", None) or ()
    return state, [each for each in filters if each[0] == "error"]


def what_counts(call: Call) -> Call:
    """Return a call without the arguments that do not matter for its result.

    Each fit of a search gets the number of candidates, for messages, and since 1.9 the search itself, for callbacks:
    with them, a search of one more candidate would not reuse any results.
    """
    function, args, kwargs = call
    if "candidate_progress" not in kwargs:
        return call
    if (getattr(function, "__module__", ""), getattr(function, "__qualname__", "")) == _FIT:
        return function, args, {name: value for name, value in kwargs.items() if name not in _SAID}
    return call
