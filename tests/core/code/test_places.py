"""Whose a module is, by its file alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.code.places import ModuleFacts, Places, Whose, is_never_sent, judge, tops_of

PLACES = Places(python=("/usr/lib/python3.11",), installed=("/env/lib/python3.11/site-packages", "/opt/packages"))


@pytest.mark.parametrize(
    ("path", "whose"),
    [
        ("/usr/lib/python3.11/json/__init__.py", Whose.PYTHON),
        ("/usr/lib/python3.11/site-packages/numpy/__init__.py", Whose.INSTALLED),
        ("/env/lib/python3.11/site-packages/numpy/__init__.py", Whose.INSTALLED),
        ("/usr/lib/python3/dist-packages/yaml/__init__.py", Whose.INSTALLED),
        ("/opt/packages/a.py", Whose.INSTALLED),
        ("/opt/packages-of-mine/a.py", Whose.LOCAL),
        ("/usr/lib/python3.11-extra/a.py", Whose.LOCAL),
        ("/home/ann/src/churn/__init__.py", Whose.LOCAL),
    ],
)
def test_the_folder_decides(path: str, whose: Whose) -> None:
    assert PLACES.whose(path) is whose


def test_a_module_a_package_and_a_namespace_of_the_users() -> None:
    assert judge(ModuleFacts("/home/a.py"), PLACES) == (Whose.LOCAL, ("/home/a.py",))
    package = ModuleFacts("/home/p/__init__.py", ("/home/p",))
    assert judge(package, PLACES) == (Whose.LOCAL, ("/home/p",))
    portions = ModuleFacts(None, ("/opt/packages/n", "/home/n", "/home/other/n"))
    assert judge(portions, PLACES) == (Whose.LOCAL, ("/home/n", "/home/other/n"))
    redirected = ModuleFacts("/home/p/__init__.py", ("/opt/packages/p",))
    assert judge(redirected, PLACES) == (Whose.LOCAL, ("/home/p",))


def test_what_is_not_the_users_has_no_sources() -> None:
    assert judge(ModuleFacts(is_builtin=True), PLACES) == (Whose.PYTHON, ())
    assert judge(ModuleFacts("/opt/packages/a.py"), PLACES) == (Whose.INSTALLED, ())
    assert judge(ModuleFacts(None, ("/opt/packages/n",)), PLACES) == (Whose.INSTALLED, ())
    assert judge(ModuleFacts(), PLACES) == (Whose.MEMORY, ())


@given(st.lists(st.sampled_from(["/home/n", "/opt/packages/n", "/usr/lib/python3.11/n", "/srv/n"]), unique=True))
def test_sources_are_the_users_own_in_the_drivers_order(paths: list[str]) -> None:
    _, sources = judge(ModuleFacts(None, tuple(paths)), PLACES)
    assert list(sources) == [path for path in paths if path in ("/home/n", "/srv/n")]


@pytest.mark.parametrize("name", ["__main__", "__mp_main__", "skyward", "pydevd", "_pydevd_bundle", "debugpy"])
def test_some_are_never_sent(name: str) -> None:
    assert is_never_sent(name)
    assert not is_never_sent(f"my_{name}")


def test_a_record_names_what_can_be_imported() -> None:
    record = (
        "churn/__init__.py,sha256=x,10\nchurn/core/a.py,,\nhelpers.py,sha256=x,3\n_fast.cpython-311-x86_64-linux-gnu.so,,\n"
        "../../../bin/churn,,\nchurn-1.0.dist-info/RECORD,,\n__editable__.churn-1.0.pth,,\n_churn.pth,,\n"
        '__editable___churn_1_0_finder.py,,\n__pycache__/x.pyc,,\n_editable_impl_churn.py,,\n"odd,name.py",,\n'
    )
    assert tops_of(record) == {"churn", "helpers", "_fast"}
