"""The program as nodes get it."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

from skyward.core.packages.fetch import Target
from skyward.core.packages.lists import driver_kind
from skyward.core.packages.uv_program import packed_uv, uv_here, uv_name

HERE = Target(os.uname().machine, 36, "3.12")


def test_this_machines_program_is_packed_once(tmp_path: Path) -> None:
    packed = packed_uv(driver_kind(), driver_kind(), HERE, tmp_path)
    assert packed is not None
    assert packed.name.startswith(uv_name())
    here = uv_here()
    assert here is not None
    with gzip.open(packed) as file:
        assert file.read(4096) == Path(here).read_bytes()[:4096]
    changed = packed.stat().st_mtime_ns
    assert packed_uv(driver_kind(), driver_kind(), HERE, tmp_path) == packed
    assert packed.stat().st_mtime_ns == changed
    assert list(tmp_path.iterdir()) == [packed]


def test_there_is_none_for_other_systems(tmp_path: Path) -> None:
    assert packed_uv("FreeBSD amd64", driver_kind(), HERE, tmp_path) is None
    assert packed_uv("Linux x86_64", driver_kind(), Target("x86_64", 0, "3.12"), tmp_path) is None  # another C library
