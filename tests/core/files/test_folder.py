"""A folder is read as it is, and whatever can't be sent is named."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from skyward.core.errors import ConfigError, VolumeFailed
from skyward.core.files.cut import cut
from skyward.core.files.folder import scan
from skyward.core.protocol.manifest import CHUNK, FolderLink, Manifest


def test_everything_is_found(tmp_path: Path) -> None:
    """Odd names, empty files and folders, links inside, and who may be executed."""
    odd = tmp_path / os.fsdecode(b"b \xff\n")
    odd.mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "hollow" / "deep").mkdir(parents=True)
    (tmp_path / "absolute").symlink_to(tmp_path / "run.sh")
    (tmp_path / "hollow" / "up").symlink_to("../empty")
    (odd / "x").write_bytes(b"x" * 10)
    folder = scan(str(tmp_path))
    assert folder.folders == [b"b \xff\n", b"hollow", b"hollow/deep"]
    assert [(file.path, file.size, file.runs) for file in folder.files] == [
        (b"b \xff\n/x", 10, False), (b"empty", 0, False), (b"run.sh", 10, True)
    ]  # fmt: skip
    assert folder.links == [FolderLink(b"absolute", b"run.sh"), FolderLink(b"hollow/up", b"../empty")]
    assert folder.files[1].changed == (tmp_path / "empty").stat().st_mtime_ns
    assert Manifest.unpack(folder.manifest().pack()).size == folder.size == 20


def test_chunks_have_the_content_and_its_digest(tmp_path: Path) -> None:
    content = os.urandom(CHUNK + 1000)
    (tmp_path / "large").write_bytes(content)
    (tmp_path / "small").write_bytes(b"small")
    folder = scan(str(tmp_path))
    read: list[int] = []
    manifest = folder.manifest(read.append)
    chunks = [bytes(folder.read(chunk, name)) for chunk, name in zip(cut(folder.files), manifest.chunks, strict=True)]
    assert b"".join(chunks) == content + b"small"
    assert [name[8:] for name in manifest.chunks] == [xxhash.xxh3_128_digest(chunk) for chunk in chunks]
    assert read == [CHUNK, CHUNK + 1000, CHUNK + 1005]


def test_a_folder_behind_a_link_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").touch()
    (tmp_path / "link").symlink_to("real")
    assert [file.path for file in scan(str(tmp_path / "link")).files] == [b"x"]


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: (folder / "l").symlink_to("/etc/passwd"), "l leads out of the folder, to /etc/passwd"),
        (lambda folder: (folder / "l").symlink_to(".."), "l is a loop: it leads to a folder that it is in"),
        (lambda folder: (folder / "l").symlink_to("."), "l is a loop: it leads to a folder that it is in"),
        (lambda folder: (folder / "l").symlink_to("l"), "l is a loop of links"),
        (lambda folder: (folder / "l").symlink_to("gone"), r"l leads nowhere \(gone\)"),
        (_fifo, "pipe is neither a file nor a folder"),
        (_socket, "socket is neither a file nor a folder"),
    ],
    ids=["out", "up", "here", "itself", "nowhere", "fifo", "socket"],
)
def test_what_cannot_be_sent_is_named(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    make(tmp_path)
    with pytest.raises(ConfigError, match=says):
        scan(str(tmp_path))


def test_a_sibling_whose_name_begins_alike_is_outside(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data2").mkdir()
    (tmp_path / "data" / "l").symlink_to("../data2")
    with pytest.raises(ConfigError, match="leads out of the folder"):
        scan(str(tmp_path / "data"))


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "gone"):
        with pytest.raises(ConfigError, match="is not a folder of this machine"):
            scan(str(tmp_path / name))


def as_nobody(look: Callable[[], object]) -> str:
    """The error that `look` raises for a user who is not root, in a child of this process."""
    if os.geteuid() != 0:
        return said(look)
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        os.write(write, said(look).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as text:
        result = text.read()
    os.waitpid(pid, 0)
    return result


def said(look: Callable[[], object]) -> str:
    try:
        look()
    except ConfigError as error:
        return str(error)
    except BaseException as error:
        return f"another error: {error!r}"
    return "no error"


@pytest.mark.parametrize("name", ["file", "folder"])
def test_what_may_not_be_read_is_named(name: str) -> None:
    with tempfile.TemporaryDirectory() as place:  # not in pytest's own folder, which only its user may enter
        Path(place).chmod(0o755)
        Path(place, "file").touch()
        Path(place, "folder").mkdir()
        Path(place, name).chmod(0)
        assert f"{name} can't be read: Permission denied" in as_nobody(lambda: scan(place))
        Path(place, name).chmod(0o700)


def _touched(file: Path) -> None:
    os.utime(file, ns=(1, 1))


def _replaced(file: Path) -> None:
    status = file.stat()
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(file)


def _rewritten(file: Path) -> None:
    """As if the clock stood still: only the content tells."""
    status = file.stat()
    with file.open("r+b") as stream:
        stream.write(b"X")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [_touched, _replaced, _rewritten, Path.unlink, lambda file: os.truncate(file, 3)])
def test_what_has_changed_is_never_sent(tmp_path: Path, change: Callable[[Path], object]) -> None:
    (tmp_path / "x").write_bytes(b"content")
    folder = scan(str(tmp_path))
    manifest = folder.manifest()
    (chunk,) = cut(folder.files)
    change(tmp_path / "x")
    with pytest.raises(VolumeFailed, match="x has changed since the pool began to read the folder") as caught:
        folder.read(chunk, manifest.chunks[0])
    assert caught.value.everywhere


def test_a_file_of_5_gb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """Its holes are read like anything else; here only the last chunk is."""
    with (tmp_path / "x").open("wb") as file:
        file.truncate(5 * 10**9)
    folder = scan(str(tmp_path))
    chunks = list(cut(folder.files))
    assert len(chunks) == -(-5 * 10**9 // CHUNK)
    assert len(folder.read(chunks[-1])) == 5 * 10**9 % CHUNK
