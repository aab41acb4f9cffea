"""Versions of the local code, in a program of its own that edits its files."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]

PRELUDE = """
import json, os, sys, time
sys.path.insert(0, {repository!r})
import msgpack
from skyward.core.blobs.snapshots import Snapshots
from skyward.core.code.local_code import CodeSettings, LocalCode
from skyward.core.errors import ConfigError, PayloadError

snapshots = Snapshots()

def code(sent=True, wanted=(), exclude=()):
    return LocalCode(snapshots, CodeSettings(sent, tuple(wanted), tuple(exclude)))

def contents(version):
    "What a node would lay out."
    return {{
        path.decode(): bytes(version.blobs[version.bundles[bundle]])[offset : offset + size].decode()
        for path, _, bundle, offset, size in msgpack.unpackb(version.manifest)
    }}

def write(path, text):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w") as file:
        file.write(text)

def report(*values):
    print(json.dumps(values))

def main():
"""


def run(folder: Path, body: str, **files: str) -> list[Any]:
    """Run a script beside these modules; return what it reports, a list for each call of `report`."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    script = PRELUDE.format(repository=str(REPOSITORY)) + textwrap.indent(textwrap.dedent(body), "    ") + "\nmain()\n"
    (folder / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_is_imported_here_there_and_in_functions(tmp_path: Path) -> None:
    body = """
    import helpers
    def task():
        import lazily
    version = code().now(look=True)
    report(version.number, contents(version))
    """
    ((number, found),) = run(
        tmp_path,
        body,
        helpers="import beside\n",
        beside="",
        lazily="from deeper import x\n",
        deeper="x = 1\n",
        other="",
    )
    assert number == 1
    assert found == {
        "helpers.py": "import beside\n", "beside.py": "", "lazily.py": "from deeper import x\n", "deeper.py": "x = 1\n",
    }  # fmt: skip


def test_an_edit_makes_a_version_with_a_bundle_of_what_is_new(tmp_path: Path) -> None:
    body = """
    import helpers, other
    it = code()
    first = it.now(look=True)
    report(it.now(look=True) is first, it.now() is first)
    write("helpers.py", "x = 2")
    second = it.now(look=True)
    report(second.number, contents(second), [bytes(second.blobs[name]).decode() for name in second.bundles])
    write("helpers.py", "x = 3")
    third = it.now(look=True)
    report(third.number, [bytes(third.blobs[name]).decode() for name in third.bundles])
    write("other.py", "import late")
    fourth = it.now(look=True)
    report(sorted(contents(fourth)))
    write("late.py", "y = 1")
    fifth = it.now(look=True)
    report(contents(fifth))
    os.remove("other.py")
    sixth = it.now(look=True)
    report(sorted(contents(sixth)))
    os.utime("helpers.py")
    it._next_call = 0.0
    report(it.now(look=True) is sixth)
    """
    same, second, third, unresolved, late, removed, touched = run(tmp_path, body, helpers="x = 1", other="z = 1")
    assert same == [True, True]
    assert second == [2, {"helpers.py": "x = 2", "other.py": "z = 1"}, ["x = 1z = 1", "x = 2"]]
    assert third == [3, ["x = 1z = 1", "x = 3"]], "what no file needs is dropped"
    assert unresolved == [["helpers.py", "other.py"]], "what it imports is looked for at each check"
    assert late == [{"helpers.py": "x = 3", "other.py": "import late", "late.py": "y = 1"}]
    assert removed == [["helpers.py", "late.py"]]
    assert touched == [True]


def test_what_is_imported_between_two_tasks_is_noticed_at_once(tmp_path: Path) -> None:
    body = """
    it = code()
    report(it.now())
    __import__("hel" + "pers")
    first = it.now()
    report(contents(first))
    __import__("oth" + "er")
    report(sorted(contents(it.of_job(first, b""))), it.of_job(it.now(), b"").number)
    """
    assert run(tmp_path, body, helpers="x = 1", other="") == [
        [None], [{"helpers.py": "x = 1"}], [["helpers.py", "other.py"], 2],
    ]  # fmt: skip


def test_all_later_tasks_of_a_call_have_what_was_imported_during_it(tmp_path: Path) -> None:
    body = """
    import cloudpickle, helpers
    it = code()
    pinned = it.now(look=True)
    other = __import__("oth" + "er")
    old, new = cloudpickle.dumps(helpers.f), cloudpickle.dumps(other.f)
    report([sorted(contents(it.of_job(pinned, new))) for _ in range(3)])
    write("helpers.py", "def f(): return 2")
    it.now(look=True)
    report(it.of_job(pinned, old) is pinned, "return 2" in contents(it.of_job(pinned, old))["helpers.py"])
    report([sorted(contents(it.of_job(pinned, new))) for _ in range(2)])
    """
    both = ["helpers.py", "other.py"]
    f = "def f(): return 1"
    assert run(tmp_path, body, helpers=f, other=f) == [[[both] * 3], [True, False], [[both] * 2]]


def test_versions_that_only_add_modules_know_it(tmp_path: Path) -> None:
    body = """
    it = code()
    report(it.now())
    seen = []
    for name in ("one", "two", "pack"):
        __import__(name)
        seen.append(it.now().since)
    last = it.now()  # before the edit, which any call may see
    write("pack/part.py", "")
    seen.append(it.now(look=True).since)
    __import__("thr" + "ee")
    last = it.now()
    seen.append(last.since)
    write("one.py", "x = 2")
    seen.append(it.now(look=True).since)
    report(seen, it.now().number)
    """
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").write_text("")
    assert run(tmp_path, body, one="", two="", three="") == [[None], [[1, 1, 1, 4, 4, 6], 6]]


def test_nodes_here_get_a_number_that_only_an_edit_changes(tmp_path: Path) -> None:
    body = """
    import helpers
    it = code(sent=False)
    first = it.now(look=True)
    import other
    report(first.number, first.manifest, it.now(look=True) is first)
    write("helpers.py", "x = 2")
    report(it.now(look=True).number)
    """
    assert run(tmp_path, body, helpers="x = 1", other="") == [[1, None, True], [2]]


def test_released_versions_leave_nothing(tmp_path: Path) -> None:
    body = """
    import helpers
    it = code()
    version = it.now(look=True)
    for number in range(5):
        write("helpers.py", f"x = {number}")
        version = it.now(look=True)
    report(version.number, len(snapshots._kept))
    """
    assert run(tmp_path, body, helpers="") == [[6, 1]]


def test_a_module_that_is_no_file_is_an_error_where_a_task_needs_it(tmp_path: Path) -> None:
    body = """
    import types, zipfile, cloudpickle
    made = sys.modules["made"] = types.ModuleType("made")
    exec("def f(): pass", made.__dict__)
    with zipfile.ZipFile("archive.zip", "w") as archive:
        archive.writestr("zipped.py", "def f(): pass")
    sys.path.append("archive.zip")
    import gone, zipped
    os.remove("gone.py")
    it = code()
    version = it.now(look=True)
    report(version)
    for module in (made, zipped, gone):
        try:
            it.of_job(version, cloudpickle.dumps(module.f))
        except PayloadError as error:
            report(str(error))
    it.of_job(version, cloudpickle.dumps(["made", "zipped"]))
    report("other tasks run")
    write("gone.py", "def f(): return 1")
    back = it.now(look=True)
    report(contents(back), it.of_job(back, cloudpickle.dumps(gone.f)) is back)
    os.remove("gone.py")
    without = it.now(look=True)
    report(contents(without))
    write("gone.py", "")
    report(contents(it.now(look=True)))
    """
    none, made, zipped, gone, others, back, empty, again = run(tmp_path, body, gone="def f(): pass")
    assert none == [None]
    assert "made was made in the memory of this process" in made[0]
    assert "register_pickle_by_value(made)" in made[0]
    assert f"zipped is in the archive {tmp_path}/archive.zip: unpack it" in zipped[0]
    assert f"gone was imported from {tmp_path}/gone.py, which is gone" in gone[0]
    assert others == ["other tasks run"]
    assert back == [{"gone.py": "def f(): return 1"}, True]
    assert (empty, again) == ([{}], [{"gone.py": ""}])


def test_what_the_user_names_and_leaves_out(tmp_path: Path) -> None:
    body = """
    import helpers
    write("plugins/a.py", "")
    write("plugins/b/data.csv", "1")
    write("lib/extra.py", "")
    it = code(wanted=["plugins", "lib/extra.py", "colorsys"], exclude=["helpers", "*.csv"])
    report(sorted(contents(it.now(look=True))))
    for wanted in (["nowhere"], ["lib/nowhere.py"], ["lib/extra.py", "extra.py"], ["lib/no-name.py"]):
        write("extra.py", "")
        write("lib/no-name.py", "")
        try:
            code(wanted=wanted).now(look=True)
        except ConfigError as error:
            report(str(error))
    """
    names, nowhere, no_file, twice, no_name = run(tmp_path, body, helpers="")
    assert names == [["colorsys.py", "extra.py", "plugins/a.py"]]
    assert "local='nowhere': this program has no such module" in nowhere[0]
    assert "there is no such file or folder" in no_file[0]
    assert "extra.py is called extra too" in twice[0]
    assert "not a valid module name" in no_name[0]


def test_an_error_is_repeated_until_it_is_mended(tmp_path: Path) -> None:
    body = """
    write("churn/__init__.py", "")
    os.symlink("/etc", "churn/link")
    import churn
    it = code()
    for _ in range(2):
        try:
            it.now(look=True)
        except ConfigError as error:
            report("outside of its package" in str(error))
    os.remove("churn/link")
    report(sorted(contents(it.now())))
    report(code(sent=False).now(look=True).number)
    """
    assert run(tmp_path, body) == [[True], [True], [["churn/__init__.py"]], [1]]


def test_the_line_before_the_first_task_and_the_reasons(tmp_path: Path) -> None:
    body = """
    import helpers
    write("big/__init__.py", "# " + "x" * 200_000)
    import big
    it = code()
    report(it.summary)
    it.now(look=True)
    report(it.summary)
    report(sorted((name, reason) for name, _, _, reason in it.reasons()))
    """
    before, after, reasons = run(tmp_path, body, helpers="import beside", beside="")
    assert (before, after) == ([""], ["3 modules, 0.2 MB"])
    assert reasons == [[["beside", "your program imports it"], ["big", "your program imports it"],
                        ["helpers", "your program imports it"]]]  # fmt: skip
