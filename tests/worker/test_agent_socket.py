"""Where an agent listens, and where it does not."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from skyward.worker.agent_socket import listen
from tests.worker.helpers import Owner


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(ValueError):
        Owner(listen=f"unix:{link}/agent.sock")


def test_a_file_system_without_sockets_gets_a_folder_elsewhere(tmp_path: Path) -> None:
    """vfat refuses a socket with EPERM, as does an immutable folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    done = subprocess.run(["chattr", "+i", folder], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"can't forbid new files in a folder: {done.stderr.strip()}")
    try:
        listener, path, place = listen(f"unix:{folder}/agent.sock")
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)
    with listener:
        assert Path(path).is_socket()
        assert Path(path).parent == Path(place) != folder
        assert stat.S_IMODE(Path(place).stat().st_mode) == 0o700
    shutil.rmtree(place)


def test_a_folder_that_can_not_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        listen(f"unix:{tmp_path}/file/agent.sock")
