"""Volumes are checked when they are made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from skyward.core.errors import ConfigError
from skyward.core.pool_arguments import volumes
from skyward.core.volumes import LocalVolume, S3Volume, Volume


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_volume_is_as_it_was_made_wherever_the_program_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = LocalVolume("data/", Path("data"))
    monkeypatch.chdir("/")
    assert (volume.path, volume.source, volume.read_only) == ("data", str(folder / "data"), True)
    assert LocalVolume("/mnt//data", str(folder)).path == "/mnt/data"


@pytest.mark.parametrize("mount", ["", ".", "..", "../x", "/", "a/../..", "~/data", "~", "x\0"])
def test_a_place_must_be_one(mount: str) -> None:
    with pytest.raises(ConfigError, match="LocalVolume"):
        LocalVolume(mount, "data")


@pytest.mark.parametrize("source", ["gone", "file"])
def test_the_folder_must_exist(source: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"is not a folder of this machine .*{source}"):
        LocalVolume("mount", source)


@pytest.mark.parametrize("arguments", [(3, "data"), ("data", None)])
def test_both_are_paths(arguments: Any) -> None:
    with pytest.raises(ConfigError, match="the mount comes first"):
        LocalVolume(*arguments)


def test_swapped_arguments_are_recognized() -> None:
    with pytest.raises(ConfigError, match=r"the mount comes first.*Write LocalVolume\('/data', './data'\)"):
        LocalVolume("./data", "/data")
    with pytest.raises(ConfigError, match=r"Write S3Volume\('/data', 'bucket'\)"):
        S3Volume("bucket", "/data")


def test_one_volume_is_a_list_of_one() -> None:
    volume = LocalVolume("data", "data")
    assert volumes(volume) == volumes([volume]) == (volume,)
    assert volumes(()) == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("data", "is not a list"),
        (["data"], "is not a volume"),
        ([Volume("data")], "is not a volume"),
    ],
)
def test_anything_else_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        volumes(given)


@pytest.mark.parametrize(
    ("url", "words"), [("gs://bucket/p", "HMAC"), ("az://c/p", "Azure"), ("s3://bucket/p", "S3Volume")]
)
def test_urls_of_stores_are_no_volumes(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Volume(url)


@pytest.mark.parametrize("places", [("a", "a"), ("a", "a/b"), ("/x/y", "/x"), ("a", "b", "a/c"), ("a", "a-b", "a/c")])
def test_volumes_do_not_lie_in_each_other(places: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="can't contain another"):
        volumes([LocalVolume(place, os.curdir) for place in places])


def test_names_that_begin_alike_are_different() -> None:
    assert len(volumes([LocalVolume(place, "data") for place in ("a", "a-b", "ab", "a.b/c")])) == 4


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("s3://b1c/p", "/data"), r"Write S3Volume\('/data', 'b1c', 'p'\)"),
        (("bucket", "/data", "p/"), r"Write S3Volume\('/data', 'bucket', 'p/'\)"),
        (("/data", "s3://bucket/p/q"), r"Write S3Volume\('/data', 'bucket', 'p/q'\)"),
        (
            ("/data", "gs://bucket/p/q"),
            r"S3Volume\(\"data\", 'bucket', 'p/q', endpoint=\"https://storage.googleapis.com",
        ),
        (("gs://bucket/p", "/data"), "HMAC"),
        (("/data", "abfss://c@account.dfs.core.windows.net/p"), "has no S3 interface"),
        (("/data", "https://account.blob.core.windows.net/c"), "has no S3 interface"),
        (("/data", "ftp://host/p"), "is not a volume"),
        (("/data", "a bucket"), "is not the name of a bucket"),
        (("/data", "bucket", "a/../b"), "can't be a folder"),
        (("/", "bucket"), "is not a possible mount point"),
        ((1, "bucket"), "the mount comes first"),
    ],
)
def test_s3_volumes_that_are_not(arguments: tuple[Any, ...], advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        S3Volume(*arguments)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"access_key": "a"}, "belong together"),
        ({"session_token": "a"}, "belong together"),
        ({"access_key": "a", "secret_key": "b", "role": "r"}, "access_key and role exclude each other"),
        ({"anonymous": True, "instance_profile": True}, "exclude each other"),
        ({"endpoint": "s3.example.org"}, "is not a URL"),
    ],
)
def test_s3_options_that_contradict(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        S3Volume("/data", "bucket", **options)


def test_an_s3_volume_shows_no_secrets() -> None:
    volume = S3Volume("data/", "bucket", "/a/b", access_key="AKIA", secret_key="hidden", session_token="as well")
    assert (volume.path, volume.prefix, volume.url) == ("data", "a/b/", "s3://bucket/a/b/")
    for secret in ("AKIA", "hidden", "as well"):
        assert secret not in repr(volume)
