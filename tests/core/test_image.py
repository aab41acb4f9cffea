"""An image is checked when it is made."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from skyward.core.errors import ConfigError
from skyward.core.image import Image


@pytest.mark.parametrize(
    "make",
    [
        lambda: Image(pip="numpy"),
        lambda: Image(pip=[1]),  # type: ignore[list-item]
        lambda: Image(env={"A": 1}),  # type: ignore[dict-item]
        lambda: Image(env=["A"]),  # type: ignore[arg-type]
        lambda: Image(python="2.7"),
    ],
)
def test_bad_values_are_refused(make: Any) -> None:
    """With ConfigError, when they are made."""
    with pytest.raises(ConfigError):
        make()


def test_values_are_frozen_and_copy_what_they_get() -> None:
    """Changing a list or dict after it was given changes nothing."""
    pip, env = ["a"], {"A": "1"}
    image = Image(pip=pip, env=env)
    pip.append("b")
    env["B"] = "2"
    assert (image.pip, image.env) == (("a",), {"A": "1"})
    with pytest.raises(AttributeError):
        image.pip = ()  # type: ignore[misc]


def test_the_nodes_python_is_the_drivers() -> None:
    """Another minor version is refused, since pickled functions don't cross it."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert Image().python_version == Image(python=here).python_version == here
