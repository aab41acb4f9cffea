"""S3 volumes in real pools, with real S3 servers: here, and on hosts that fetch from the server themselves."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import skyward as sky
from skyward.core import running_pool
from skyward.core.events import Event, Note
from tests.lab import Host, Lab, eventually
from tests.lab.fixtures import FreshHost, LabHosts
from tests.processes import descendants
from tests.remote import Reach, index, reach, wheels
from tests.s3_servers import KEYS, S3Server, moto_s3, needs_rclone, rclone_s3

__all__ = ["index", "reach", "wheels"]  # fixtures

pytestmark = [pytest.mark.slow, needs_rclone]

MB = 2**20


def look(place: str) -> tuple[dict[str, int], str]:
    """The sizes of all files, and a file's content."""
    import os

    sizes = {}
    for here, _, names in os.walk(place):
        for name in names:
            path = os.path.join(here, name)
            sizes[os.path.relpath(path, place)] = os.stat(path).st_size  # noqa: PTH116
    with open(f"{place}/train.csv") as file:  # noqa: PTH123
        return sizes, file.read()


def modes(place: str) -> list[str]:
    """Permissions."""
    import os
    import stat

    return [stat.filemode(os.stat(path).st_mode) for path in (place, f"{place}/train.csv")]  # noqa: PTH116


def processes() -> list[tuple[str, str]]:
    """The node's servers: their environments as their user may read them, and the files in which their keys are."""
    import os
    from pathlib import Path

    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
                line = file.read()
            if b"rclone" in line and line.split(b"\0")[1:2] == [b"rcd"]:
                with open(f"/proc/{pid}/environ") as file:  # noqa: PTH123
                    found.append((file.read(), str(Path(f"/proc/{pid}/cwd").readlink())))
        except OSError:
            continue
    return [(text, oct(os.stat(f"{place}/keys").st_mode & 0o777)) for text, place in found]  # noqa: PTH116


def write(place: str, number: int, size: int = 0) -> bytes:
    """Write a file, and return as much."""
    with open(f"{place}/part-{number}", "w") as file:  # noqa: PTH123
        file.write(f"{number}")
    return bytes(size)


def write_and_fail(place: str) -> None:
    """Write a file, and don't return."""
    write(place, 1000)
    raise ZeroDivisionError


def link(place: str) -> None:
    """Make what a bucket can't hold."""
    import os

    os.symlink("/nowhere", f"{place}/link")  # noqa: PTH211


def unlink(place: str) -> None:
    """Remove it."""
    import os

    os.unlink(f"{place}/link")  # noqa: PTH108


for function in (look, modes, processes, write, write_and_fail, link, unlink):
    function.__module__ = "__main__"  # hosts don't have this module


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An account of the driver's at moto's AWS, with a bucket."""
    with moto_s3() as server:
        large = os.urandom(20 * MB)
        server.put("my-bucket", {"datasets/train.csv": b"x,y\n1,2\n", "datasets/deep/large": large, "other": b"1"})
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-drivers-own")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-drivers-secret")
        monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
        yield server


EXPECTED = {"train.csv": 8, "deep/large": 20 * MB}


def test_a_bucket_on_this_machine(account: S3Server) -> None:
    """Its own keys stay here; what runs for it ends with the pool."""
    mine = descendants(os.getpid())
    with sky.Compute(nodes=2, volume=sky.S3Volume("data", "my-bucket", "datasets/"), console=False) as pool:
        assert pool.submit(look, "data").result() == (EXPECTED, "x,y\n1,2\n")
        assert pool.submit(modes, "data").result() == ["dr-xr-xr-x", "-r--r--r--"]
        servers = [pid for pid in descendants(os.getpid()) - mine if b"rcd" in _line(pid)]
        assert servers
        for pid in servers:
            assert b"the-drivers" not in Path(f"/proc/{pid}/environ").read_bytes()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in servers), 20, "rclone has ended")


def _line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_nothing_is_started_for_a_bucket_that_is_not_there(account: S3Server) -> None:
    with (
        pytest.raises(sky.ConfigError, match="s3://my-bucket/dataset/ is empty"),
        sky.Compute(volume=sky.S3Volume("data", "my-bucket", "dataset/"), console=False),
    ):
        pass


def test_a_store_that_takes_its_time_is_said(account: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything else is shown."""
    monkeypatch.setattr(running_pool, "_SLOW", 0.2)
    said: list[str] = []

    def hear(event: Event) -> None:
        assert isinstance(event, Note)
        said.append(event.text)
        os.kill(account.process.pid, signal.SIGCONT)

    pool = sky.Compute(volume=sky.S3Volume("data", "my-bucket", "datasets/"), console=False)
    pool.events.subscribe(hear, [Note])
    os.kill(account.process.pid, signal.SIGSTOP)
    with pool:
        assert "s3://my-bucket/datasets/: the store has not answered for 0 s" in said[0]


def _make_certificate(path: Path) -> None:
    """Write a certificate for this machine, which nobody trusts by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "store")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(pem))


def test_a_store_with_a_certificate_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_CA_BUNDLE counts for nodes on this machine as it does for the driver."""
    bundle = tmp_path / 'with "quotes", and a comma.pem'
    _make_certificate(bundle)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    (tmp_path / "served" / "my-bucket" / "datasets").mkdir(parents=True)
    (tmp_path / "served" / "my-bucket" / "datasets" / "train.csv").write_text("x,y\n1,2\n")
    with rclone_s3(tmp_path / "served", certificate=bundle) as server:
        volume = sky.S3Volume("data", "my-bucket", "datasets/", endpoint=server.url, **KEYS)
        with sky.Compute(volume=volume, console=False) as pool:
            assert pool.submit(look, "data").result() == ({"train.csv": 8}, "x,y\n1,2\n")


WRITABLE = sky.S3Volume("data", "my-bucket", "datasets/", read_only=False)


def test_what_tasks_write_is_saved_when_they_are_done(account: S3Server) -> None:
    with sky.Compute(nodes=2, volume=WRITABLE, console=False) as pool:
        assert pool.submit(look, "data").result() == (EXPECTED, "x,y\n1,2\n")
        for number in range(3):
            assert pool.submit(write, "data", number, 4 * MB).result() == bytes(4 * MB)
            assert account.get("my-bucket", f"datasets/part-{number}") == b"%d" % number
        futures = [pool.submit(write, "data", number) for number in range(3, 50)]
        for number, future in enumerate(futures, 3):
            future.result()
            assert account.get("my-bucket", f"datasets/part-{number}") == b"%d" % number
        with pytest.raises(ZeroDivisionError):
            pool.submit(write_and_fail, "data").result()
    assert account.get("my-bucket", "datasets/part-1000") == b"1000"
    assert account.get("my-bucket", "datasets/train.csv") == b"x,y\n1,2\n"


def test_what_cant_be_saved_fails_tasks_and_the_run(account: S3Server) -> None:
    problem = "my-bucket/datasets/link: a link that leads nowhere"
    with pytest.raises(sky.VolumeFailed, match=problem), sky.Compute(volume=WRITABLE, console=False) as pool:
        with pytest.raises(sky.VolumeFailed, match=rf"link \(task 1\) on node-1 returned, but .*{problem}"):
            pool.submit(link, "data").result()
        with pytest.raises(sky.VolumeFailed, match=problem):
            pool.submit(write, "data", 1).result()
        assert account.get("my-bucket", "datasets/part-1") == b"1"
        pool.submit(unlink, "data").result()
        with pytest.raises(sky.VolumeFailed, match=problem):
            pool.submit(link, "data").result()
    with (
        pytest.raises(ValueError, match="the program's own"),
        sky.Compute(volume=WRITABLE, console=False) as pool,
    ):
        with pytest.raises(sky.VolumeFailed, match=problem):
            pool.submit(link, "data").result()
        raise ValueError("the program's own")


def kinds(place: str) -> list[str]:
    """What is mounted in the tasks' working directory or at a place below it."""
    import os

    with open("/proc/self/mounts") as file:  # noqa: PTH123
        return [line.split()[2] for line in file if line.split()[1] == os.path.realpath(place)]


def mounted(host: Host) -> set[str]:
    """Where buckets are mounted on a host."""
    lines = map(str.split, host.run("cat", "/proc/mounts").stdout.splitlines())
    return {place for _, place, kind, *_ in lines if kind == "fuse.rclone"}


kinds.__module__ = "__main__"


@pytest.mark.lab
@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="hosts mount with fusermount3, which is not here")
@pytest.mark.parametrize("user", ["root", "ana"])
def test_hosts_with_fuse_mount_it(user: str, lab: Lab, fresh_host: FreshHost, reach: Reach, tmp_path: Path) -> None:
    """As root or not; and nothing stays mounted when the agent or rclone is killed, or the pool ends."""
    host = fresh_host(fuse=True, users=("ana",))
    with rclone_s3(tmp_path, lab.gateway) as server:
        server.put("my-bucket", {"datasets/train.csv": b"x,y\n1,2\n", "datasets/deep/large": os.urandom(20 * MB)})
        read = sky.S3Volume("data", "my-bucket", "datasets/", endpoint=server.url, **KEYS)
        written = sky.S3Volume("out", "my-bucket", "results/", read_only=False, endpoint=server.url, **KEYS)
        with sky.Compute(**reach([host], user=user), volume=[read, written]) as pool:
            assert pool.submit(look, "data").result() == (EXPECTED, "x,y\n1,2\n")
            assert pool.submit(kinds, "data").result() == ["fuse.rclone"]
            pool.submit(write, "out", 1).result()
            assert server.get("my-bucket", "results/part-1") == b"1"
            old = mounted(host)
            agents = [pid for pid, line in host.pids() if "skyward.worker.agent" in line]
            assert agents
            host.run("kill", "-9", *map(str, agents))
            eventually(lambda: not old & mounted(host), 20, "it is unmounted")
            assert pool.submit(look, "data").result(120) == (EXPECTED, "x,y\n1,2\n")
            everything = [pid for pid, line in host.pids() if "sshd" not in line]
            host.run("kill", "-9", *map(str, everything))
            assert pool.submit(kinds, "data").result(120) == ["fuse.rclone"]
            pool.submit(write, "out", 2).result()
        assert server.get("my-bucket", "results/part-2") == b"2"
        eventually(lambda: not mounted(host), 20, "nothing is mounted")
        eventually(lambda: not any("rclone" in line for _, line in host.pids()), 20, "rclone has ended")


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_hosts_fetch_it_themselves(
    kind: str, lab: Lab, lab_hosts: LabHosts, reach: Reach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it passes the driver; its servers' keys can be read by nobody else, and go with the pool."""
    hosts = lab_hosts(2)
    large = os.urandom(60 * MB)
    address = lab.gateway
    if kind == "moto":
        serving: Any = moto_s3(address)
    else:
        serving = rclone_s3(tmp_path, address)
    with serving as server:
        server.put("my-bucket", {"datasets/train.csv": b"x,y\n1,2\n", "datasets/deep/large": large})
        options: dict[str, Any] = {}
        if kind == "moto":
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-drivers-own")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-drivers-secret")
        else:
            options = {"endpoint": server.url, **KEYS}
        volume = sky.S3Volume("/srv/data", "my-bucket", "datasets/", **options)
        with sky.Compute(**reach(hosts), volume=volume) as pool:
            for future in [pool.submit(look, "/srv/data") for _ in range(4)]:
                assert future.result() == ({"train.csv": 8, "deep/large": 60 * MB}, "x,y\n1,2\n")
            for text, mode in pool.submit(processes).result():
                assert mode == "0o600"
                assert "the-drivers" not in text
                assert KEYS["secret_key"] not in text
        for host in hosts:
            eventually(
                lambda host=host: not any("rclone" in line for _, line in host.pids()), 20, "rclone has ended"
            )  # fmt: skip
            eventually(lambda host=host: host.run("ls", "/srv").stdout == "", 20, "the copy is gone")
