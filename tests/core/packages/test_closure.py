"""What nodes get of the driver's distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward.core.packages.closure import MACHINES, Apart, Closure, Request, close, for_node
from skyward.core.packages.installed import Distribution

LINUX = for_node("x86_64")
MAC = {**LINUX, "sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"}


def environment(**requires: Sequence[str]) -> dict[str, Distribution]:
    """Distributions of version 1.0, by what they require."""
    names = {name.replace("_", "-"): lines for name, lines in requires.items()}
    return {name: Distribution(name, "1.0", tuple(lines)) for name, lines in names.items()}


def closed(
    installed: Mapping[str, Distribution], *names: str, driver: Mapping[str, str] = LINUX, **more: Sequence[str]
) -> Closure:
    used = frozenset(more.pop("used", ()))
    return close(Request(names, **more, used=used), installed, driver)  # type: ignore[arg-type]


def test_dependencies_come_along_in_the_drivers_versions() -> None:
    """All of them, each once, and nothing else."""
    installed = environment(app=["lib>=0.5", "Log_Tool"], lib=["base"], log_tool=["base"], base=["app"], other=[])
    assert closed(installed, "app") == Closure(("app==1.0", "base==1.0", "lib==1.0", "log-tool==1.0"))


def test_markers_count_for_the_node_not_for_the_driver() -> None:
    """What only the node needs is found there; what only the driver needs stays here."""
    installed = environment(
        app=['mac-part; sys_platform == "darwin"', 'cuda>=12; sys_platform == "linux"'], mac_part=[]
    )
    assert closed(installed, "app", driver=MAC) == Closure(("app==1.0",), ("cuda>=12",))


def test_what_one_architecture_needs_is_marked() -> None:
    """The machine decides, since nobody knows it before."""
    installed = environment(app=['fast; platform_machine == "x86_64"', 'cuda; platform_machine == "aarch64"'], fast=[])
    assert closed(installed, "app") == Closure(
        ("app==1.0", 'fast==1.0 ; platform_machine == "x86_64"'), ('cuda ; platform_machine == "aarch64"',)
    )


def test_what_the_driver_lacks_is_not_missed_on_a_node_like_it() -> None:
    """An environment that does not agree with its own metadata works there as it does here."""
    installed = environment(app=["lib>=2", "gone"], lib=[])
    assert closed(installed, "app") == Closure(("app==1.0", "lib==1.0"))


def test_extras() -> None:
    """Those that are asked for, of a line and of a dependency."""
    installed = environment(
        app=['xlsx; extra == "excel"', "lib[fast]"], xlsx=[], lib=['speed; extra == "fast"'], speed=[]
    )
    assert closed(installed, "app").exact == ("app==1.0", "lib==1.0", "speed==1.0")
    assert closed(installed, lines=["app[excel]"]).exact == ("app==1.0", "lib==1.0", "speed==1.0", "xlsx==1.0")


def test_optional_dependencies_that_the_driver_uses() -> None:
    """pandas pickles pyarrow's arrays if it is there; what is installed but not loaded stays here."""
    installed = environment(pandas=['pyarrow; extra == "parquet"', 'lxml; extra == "xml"', 'pytest; extra == "test"'])
    installed |= environment(pyarrow=[], lxml=[], pytest=[])
    assert closed(installed, "pandas", used=["pyarrow", "pytest"]).exact == ("pandas==1.0", "pyarrow==1.0")


def test_optional_dependencies_for_its_developers_stay_here() -> None:
    """Also if a test runner has loaded them; nor do optional ones bring extras of their own."""
    installed = environment(scipy=['hypothesis; extra == "test"', 'mpmath[all]; extra == "more"'], hypothesis=[])
    installed |= environment(mpmath=['gmpy2; extra == "all"'], gmpy2=[])
    assert closed(installed, "scipy", used=["hypothesis", "mpmath"]).exact == ("mpmath==1.0", "scipy==1.0")


def test_scikit_learns_progress_bar_has_rich() -> None:
    """Its metadata does not say so."""
    assert closed(environment(scikit_learn=[], rich=[]), "scikit-learn").exact == ("rich==1.0", "scikit-learn==1.0")


@pytest.mark.parametrize("line", ["Lib", "lib>=0.9", "lib ~= 1.0", "lib==1.0", 'lib; python_version >= "3.8"'])
def test_a_line_that_the_driver_fulfils_means_its_version(line: str) -> None:
    """With its dependencies."""
    assert closed(environment(lib=["base"], base=[]), lines=[line]) == Closure(("base==1.0", "lib==1.0"))


@pytest.mark.parametrize(
    "line",
    ["lib==2.0", "lib<1", "absent",
      "lib @ https://host/lib.whl", "lib==1.0 --hash=sha256:00", "--pre", "lib==1.0 --config-settings=a"],
)  # fmt: skip
def test_other_lines_are_the_installers(line: str) -> None:
    """As they are; what they are about is not pinned, whoever else needs it."""
    found = closed(environment(app=["lib"], lib=["base"], base=[]), "app", lines=[line])
    assert found.resolved == (line,)
    assert ("lib==1.0" in found.exact) == (line in ("absent", "--pre"))


def test_all_lines_about_what_the_installer_finds_are_kept() -> None:
    """Also those that the driver's version fulfils."""
    assert closed(environment(lib=[]), lines=["lib>=1", "lib>2"]).resolved == ("lib>=1", "lib>2")


def test_constraints_of_the_user_count() -> None:
    """A version that they exclude is not pinned."""
    installed = environment(app=["lib"], lib=[])
    assert closed(installed, "app", constraints=["lib<1"]) == Closure(("app==1.0",), ("lib",))


def test_builds_with_a_local_version() -> None:
    """The index knows the public one; its dependencies may be others."""
    installed = {"torch": Distribution("torch", "2.5.1+cpu", ("sympy",)), **environment(sympy=[])}
    found = Closure(("sympy==1.0",), ("torch==2.5.1",), (Apart("torch", "2.5.1+cpu", "build"),))
    assert closed(installed, "torch") == closed(installed, lines=["torch"]) == found
    assert closed(installed, lines=["torch==2.5.1+cpu"]).resolved == ("torch==2.5.1+cpu",)


def test_what_no_index_has_is_told_apart() -> None:
    """Editable installs and those from a URL, with their dependencies from the index."""
    installed = environment(base=[], skyward_cloud=["rich"], rich=[])
    installed["mine"] = Distribution("mine", "0.1", ("base",), "file:///src/mine", "/src/mine")
    installed["forked"] = Distribution("forked", "0.2", (), "https://host/forked.git")
    found = closed(installed, "mine", "forked", "skyward-cloud")
    assert found.exact == ("base==1.0",)
    assert [(one.name, one.why) for one in found.apart] == [("forked", "url"), ("mine", "editable")]


def test_what_nodes_need_is_exact_whatever_the_user_says() -> None:
    """Also where a lock has it, since hashes are installed later."""
    installed = environment(msgpack=[])
    found = closed(installed, needed=["msgpack"], lines=["msgpack==1.0 --hash=sha256:00"])
    assert found == Closure(("msgpack==1.0",), ("msgpack==1.0 --hash=sha256:00",))


NAMES = st.sampled_from([f"p{number}" for number in range(8)])
MARKERS = st.sampled_from(
    ["", '; platform_machine == "x86_64"', '; extra == "x"', '; sys_platform == "win32"', '; python_version >= "3"']
)


@given(
    st.dictionaries(NAMES, st.lists(st.tuples(NAMES, st.sampled_from(["", "[x]"]), MARKERS), max_size=4)),
    st.lists(NAMES, max_size=3),
    st.lists(NAMES, max_size=2),
)
def test_what_is_exact_is_closed(
    graph: dict[str, list[tuple[str, str, str]]], names: list[str], lines: list[str]
) -> None:
    """On each machine: whatever an exact distribution requires there is exact too, unless the driver lacks it."""
    requires = {name: ["".join(parts) for parts in needs] for name, needs in graph.items()}
    found = closed(environment(**requires), *names, lines=lines)
    assert found == closed(environment(**requires), *names, lines=lines)
    for machine in MACHINES:
        has = {line.partition("==")[0] for line in found.exact if " ; " not in line or machine in line}
        assert {*names, *lines} & requires.keys() <= has
        for name in has:
            for needed, _, marker in graph[name]:
                if needed in requires and marker in ("", '; python_version >= "3"'):
                    assert needed in has
                if needed in requires and machine in marker:
                    assert needed in has
