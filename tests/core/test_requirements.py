"""What of a user's requirements can be installed on nodes, and what is refused in words."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import skyward as sky
from skyward.core import requirements

HERE = version("msgpack")


@pytest.mark.parametrize(
    "line",
    [
        "pandas",
        "pandas>=2,<3",
        "pandas[a,b] >= 2 ; python_version < '3.12'",
        "name (>=1)",
        "zope.interface==5.*",
        "torch==2.1+cpu",
        "x @ https://example.test/x-1.whl",
        "pkg@git+https://example.test/x",
        "git+ssh://git@example.test/x.git@v1#egg=x",
        "https://example.test/y.zip --hash=sha256:aa",
        "a==1 --hash=sha256:ab --hash=sha256:cd",
        "--no-binary :all:",
        "--find-links https://example.test/wheels",
        f"msgpack=={HERE}",
        f"msgpack>={HERE}",
        "cloudpickle",
        "msgpack-numpy==0.1",
    ],
)
def test_what_pip_takes_on_any_host_is_kept_as_it_is(line) -> None:
    assert sky.Image(pip=[f" {line} "]).pip == (line,)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-r requirements.txt", "Image(requirements='requirements.txt')"),
        ("--requirement=a/b.txt", "Image(requirements='a/b.txt')"),
        ("-ra.txt", "Image(requirements='a.txt')"),
        ("-c c.txt", "constraints="),
        ("-e .", "editable"),
        ("--editable=git+https://example.test/x", "editable"),
        ("./pkg", "files of this machine"),
        ("/opt/x.whl", "files of this machine"),
        ("x-1-py3-none-any.whl", "files of this machine"),
        ("file:///x", "files of this machine"),
        ("x @ file:///x", "files of this machine"),
        ("git+file:///x", "files of this machine"),
        ("folder/pkg", "files of this machine"),
        ("-f /wheels", "folder"),
        ("--index-url https://example.test", "index="),
        ("--target x", "option --target is not supported"),
        ("pandas --foo", "--foo is not an option"),
        ("foo bar", "not a requirement"),
        ("", "not a requirement"),
        ("a\nb", "line break"),
        ("msgpack==0.1", f"msgpack {HERE}"),
        ("MsgPack<1", f"msgpack {HERE}"),
        ("cloudpickle!=" + version("cloudpickle"), "nodes need cloudpickle"),
    ],
)
@pytest.mark.parametrize("name", ["pip", "constraints"])
def test_what_cant_work_on_nodes_is_an_error_at_once(name, line, words) -> None:
    with pytest.raises(sky.ConfigError) as caught:
        sky.Image(**{name: [line]})
    assert words in str(caught.value)
    assert repr(line) in str(caught.value)


@example("~=", [0, 0, 0], [0])
@given(
    st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "~="]),
    st.lists(st.integers(0, 3), min_size=2, max_size=3),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
)
def test_versions_are_compared_as_they_should_be(sign, wanted, here) -> None:
    texts = [".".join(map(str, parts)) for parts in (wanted, here)]
    full, has = ([*parts, 0, 0, 0, 0][:4] for parts in (wanted, here))
    expected = {
        "==": has == full,
        "!=": has != full,
        "<": has < full,
        "<=": has <= full,
        ">": has > full,
        ">=": has >= full,
        "~=": has >= full and has[: len(wanted) - 1] == wanted[:-1],
    }[sign]
    assert requirements._admits(f"{sign}{texts[0]}", texts[1]) is expected


def test_a_file_is_read_with_all_that_it_includes(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TOKEN", "geheim")
    (tmp_path / "more").mkdir()
    (tmp_path / "requirements.txt").write_text(
        "\ufeff# locked\n--index-url https://u:${TOKEN}@example.test/simple\n--extra-index-url=https://b.test\n\n"
        "joblib==1.4.2 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb  # via x\n"
        "-r more/base.txt\n-c more/constraints.txt\n",
        encoding="utf-8",
    )
    (tmp_path / "more/base.txt").write_text("-r other.txt\npandas>=2#not a comment\n".replace("#not a comment", ""))
    (tmp_path / "more/other.txt").write_text("six\r\n")
    (tmp_path / "more/constraints.txt").write_text("numpy<2\n")
    image = sky.Image(pip=["attrs"], requirements=tmp_path / "requirements.txt")
    assert image.pip == ("attrs", "joblib==1.4.2 --hash=sha256:aa --hash=sha256:bb", "six", "pandas>=2")
    assert image.constraints == ("numpy<2",)
    assert (image.index, image.extra_index) == ("https://u:geheim@example.test/simple", ("https://b.test",))
    assert dataclasses.replace(image, env={"A": "b"}).pip == image.pip, "it is not read twice"
    own = sky.Image(index="https://own.test", requirements=str(tmp_path / "requirements.txt"))
    assert own.index == "https://own.test"


def test_the_dependencies_of_a_project_are_read(tmp_path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text('[project]\nname = "x"\ndependencies = ["six", "attrs>=20"]\n')
    assert sky.Image(requirements=file).pip == ("six", "attrs>=20")
    file.write_text('[project]\nname = "x"\ndynamic = ["dependencies"]\n')
    with pytest.raises(sky.ConfigError, match="no list of dependencies"):
        sky.Image(requirements=file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("six\n-e .\n", r"line 2: '-e \.'.*editable"),
        ("-r requirements.txt\n", "includes itself"),
        ("-r missing.txt\n", "missing.txt can't be read"),
        ("-r https://example.test/r.txt\n", "download the file"),
    ],
)
def test_the_error_for_an_unusable_file_names_the_line(tmp_path, text, words) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(text)
    with pytest.raises(sky.ConfigError, match=words):
        sky.Image(requirements=file)
    with pytest.raises(sky.ConfigError, match="path of a file"):
        sky.Image(requirements=[str(file)])


def test_locks_are_read_by_their_names(tmp_path: Path) -> None:
    """And checked like all other lines."""
    pylock = 'lock-version = "1.0"\n[[packages]]\nname = "lib"\nversion = "1.0"\n'
    pylock += 'wheels = [{ hashes = { sha256 = "00" } }]\n'
    files = {
        "uv.lock": '[[package]]\nname = "mine"\nsource = { virtual = "." }\ndependencies = [{ name = "lib" }]\n'
        '[[package]]\nname = "lib"\nversion = "1.0"\nwheels = [{ hash = "sha256:00" }]\n',
        "pylock.toml": pylock,
        "pylock.gpu.toml": pylock,
        "environment.yml": "dependencies:\n- pip:\n  - lib==1.0 --hash=sha256:00\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert requirements.read(tmp_path / name).pip == ["lib==1.0 --hash=sha256:00"]
    (tmp_path / "environment.yml").write_text("dependencies:\n- pip:\n  - -e .\n")
    with pytest.raises(sky.ConfigError, match="editable"):
        requirements.read(tmp_path / "environment.yml")


@pytest.mark.parametrize(
    "text", ["[[package]]\nname = 1\n", "package = 7", "= 1", '[[package]]\nsource = { virtual = "." }\n']
)
def test_broken_locks(text: str, tmp_path: Path) -> None:
    """The error names the file."""
    (tmp_path / "uv.lock").write_text(text)
    with pytest.raises(sky.ConfigError, match=r"uv\.lock"):
        requirements.read(tmp_path / "uv.lock")
