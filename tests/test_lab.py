"""The lab keeps its promises: real, separate machines that come fast and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import Host, Lab, LabError, eventually
from tests.lab.fixtures import FreshHost, LabHosts
from tests.lab.longline import Lane
from tests.lab.net import Net
from tests.lab.process import identity

pytestmark = pytest.mark.lab

Record = Callable[[str, object], None]

REPOSITORY = Path(__file__).resolve().parents[1]

OWNER = """
import json, signal
from pathlib import Path
from tests.lab import Lab
lab = Lab()
hosts = lab.up(2) + lab.up(1, delay=0.001)
lab.serve_index("/tmp")
seen = json.loads((lab.folder / "state").read_text())
print(json.dumps({"folder": str(lab.folder), "number": lab.net.number, **seen}), flush=True)
signal.pause()
"""


def ssh_command(lab: Lab, host: Host, user: str = "root", *options: str) -> list[str]:
    """OpenSSH's client, told to trust nothing but the lab's known_hosts."""
    trust = ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={lab.known_hosts}"]
    alone = ["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]
    return ["ssh", *alone, *trust, "-i", str(lab.key), *options, f"{user}@{host.address}"]


def ssh(lab: Lab, host: Host, command: str, user: str = "root") -> subprocess.CompletedProcess[str]:
    """Run a command on a host through its sshd."""
    argv = [*ssh_command(lab, host, user), command]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def open_line(host: Host) -> socket.socket:
    """A TCP connection to a host's sshd, past the greeting."""
    line = socket.create_connection((host.address, host.port), timeout=5)
    assert line.recv(4096).startswith(b"SSH-")
    line.settimeout(0.5)
    return line


def test_ten_hosts_come_up_together_fast(lab: Lab, record_property: Record) -> None:
    """Ten hosts answer on port 22 within seconds; the time is reported as a property."""
    start = time.monotonic()
    hosts = lab.up(10)
    took = time.monotonic() - start
    record_property("ten_hosts_seconds", round(took, 2))
    for host in hosts:
        lab.remove(host)
    assert len({host.address for host in hosts}) == 10
    assert took < 10


def test_openssh_logs_in_and_meets_the_known_key(lab: Lab, lab_hosts: LabHosts) -> None:
    """The stock client gets in with strict checking, and each host has its own name and key."""
    hosts = lab_hosts(2)
    names = [ssh(lab, host, "hostname").stdout.strip() for host in hosts]
    assert names == [host.name for host in hosts]
    assert hosts[0].public_key != hosts[1].public_key


def test_a_host_can_be_reached_through_another(lab: Lab, lab_hosts: LabHosts) -> None:
    """Any host can serve as a jump host."""
    jump, target = lab_hosts(2)
    via = " ".join([*ssh_command(lab, jump, "root", "-W", "%h:%p")])
    argv = [*ssh_command(lab, target, "root", "-o", f"ProxyCommand={via}"), "echo $SSH_CLIENT"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split()[0] == jump.address


def test_a_host_sees_nothing_of_this_machine_or_its_peers(fresh_host: FreshHost) -> None:
    """Home and /tmp are empty, the repository is not there, and processes are its own."""
    first, second = fresh_host(), fresh_host()  # on shared ones there may be what other tests have left
    assert first.run("ls", "/root", "/home", "/tmp", "/var/tmp").stdout.split() == [
        "/home:", "/root:", "/tmp:", "/var/tmp:"
    ]  # fmt: skip
    assert first.run("ls", str(REPOSITORY)).returncode != 0
    second.run("touch", "/tmp/mine", "/root/mine", "/usr/mine", "/dev/shm/mine", check=True)
    assert "mine" not in first.run("ls", "/tmp", "/root", "/usr", "/dev/shm").stdout
    assert not Path("/usr/mine").exists()
    listed = first.run("ps", "-e", "-o", "pid=,comm=").stdout
    assert str(os.getpid()) not in listed.split()
    assert listed.split()[:2] == ["1", "sh"]


def test_a_host_has_one_clean_python(lab: Lab, lab_hosts: LabHosts) -> None:
    """The running minor is found over ssh, with pip and without packages that were added to it."""
    (host,) = lab_hosts(1)
    minor = f"python3.{sys.version_info.minor}"
    found = ssh(lab, host, f"command -v {minor}; ls /usr/bin/python3*").stdout.splitlines()
    assert found[0] == f"/opt/python/3.{sys.version_info.minor}/bin/{minor}"
    assert "/usr/bin/python3" not in found
    probe = "import importlib.util as u, sys; print(sys.version); print(u.find_spec('pytest'))"
    version, pytest_found = ssh(lab, host, f'{minor} -c "{probe}"').stdout.splitlines()
    assert version == sys.version
    assert pytest_found == "None"
    assert ssh(lab, host, f"{minor} -m pip --version").returncode == 0


def test_a_host_without_python(lab: Lab, fresh_host: FreshHost) -> None:
    """With pythons=() no interpreter is found under any name."""
    host = fresh_host(pythons=())
    names = "python python3 " + " ".join(f"python3.{n}" for n in range(8, 16))
    done = ssh(lab, host, f"for p in {names}; do command -v $p; done; ls /usr/bin/python3")
    assert done.stdout == ""


def test_pids_tells_what_runs(lab_hosts: LabHosts) -> None:
    """The first process and the listener are left out; what a test started is listed."""
    (host,) = lab_hosts(1)
    eventually(lambda: host.pids() == [], what="quiet host")
    inside = ["nsenter", "-t", host.root.parts[2], "-p", "-m", "sleep", "977"]
    with subprocess.Popen(inside) as sleeper:
        try:
            [(pid, _)] = eventually(lambda: [found for found in host.pids() if found[1] == "sleep 977"])
            host.run("kill", str(pid), check=True)
        except BaseException:
            sleeper.kill()
            raise
    eventually(lambda: host.pids() == [], what="quiet host")


def test_a_cut_line_is_silent_and_can_be_mended(lab: Lab, lab_hosts: LabHosts) -> None:
    """Open connections survive a cut; new ones time out; the host runs on."""
    (host,) = lab_hosts(1)
    with open_line(host) as line:
        host.cut()
        line.sendall(b"SSH-2.0-test\r\n")
        with pytest.raises(TimeoutError):
            line.recv(1)
        with pytest.raises(TimeoutError):
            socket.create_connection((host.address, host.port), timeout=0.3)
        assert host.alive
        host.mend()
        line.settimeout(10)
        assert line.recv(1)
    assert ssh(lab, host, "true").returncode == 0


def test_a_killed_host_sends_nothing(fresh_host: FreshHost) -> None:
    """After the plug is pulled a peer meets silence, neither FIN nor reset."""
    host = fresh_host()
    with open_line(host) as line:
        host.kill()
        with pytest.raises(TimeoutError):
            line.recv(1)
        with pytest.raises(TimeoutError):
            socket.create_connection((host.address, host.port), timeout=0.3)
    assert not host.alive
    with pytest.raises(LabError, match="is off"):
        host.run("true")
    host.kill()


def test_a_restarted_host_is_itself_with_an_empty_disk(lab: Lab, fresh_host: FreshHost) -> None:
    """Address and key stay, files go."""
    host = fresh_host()
    host.run("touch", "/root/kept", "/usr/kept", check=True)
    host.restart()
    done = ssh(lab, host, "ls /root /usr; hostname")
    assert host.name in done.stdout
    assert "kept" not in done.stdout


def test_nobody_answers_at_an_unused_address(lab: Lab) -> None:
    """Packets to it are lost without an error."""
    with pytest.raises(TimeoutError):
        socket.create_connection((lab.unused_address(), 22), timeout=0.3)


def test_a_changed_host_key_is_noticed(lab: Lab, fresh_host: FreshHost) -> None:
    """After rekey the client refuses, as known_hosts has the old key."""
    host = fresh_host()
    before = host.public_key
    host.rekey()
    done = ssh(lab, host, "true")
    assert done.returncode == 255
    assert "IDENTIFICATION HAS CHANGED" in done.stderr
    assert host.public_key != before


def test_an_unknown_key_is_refused(lab: Lab, fresh_host: FreshHost) -> None:
    """With authorized=False the lab's key does not open the door."""
    done = ssh(lab, fresh_host(authorized=False), "true")
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


def test_users_shells_and_noise(lab: Lab, fresh_host: FreshHost) -> None:
    """Commands over ssh: bash runs ~/.bashrc first; dash does not; users have homes."""
    noisy = fresh_host(users=("alice",), bashrc="echo noise")
    assert ssh(lab, noisy, "id -un; pwd", "alice").stdout.split() == [
        "noise", "alice", "/home/alice"
    ]  # fmt: skip
    quiet = fresh_host(users=("alice", "bob"), bashrc="echo noise", shell="/bin/dash")
    done = ssh(lab, quiet, "echo $0; touch file && id -u", "bob")
    assert done.stdout.split() == ["dash", "1001"]
    assert quiet.run("id", "-un", user="alice").stdout.strip() == "alice"


def test_a_disk_can_be_full(lab: Lab, fresh_host: FreshHost) -> None:
    """Home and /tmp share one small disk; other places are not touched by it."""
    host = fresh_host(disk="5M")
    assert "No space left" in ssh(lab, host, "head -c 6M /dev/zero >/tmp/big").stderr
    assert "No space left" in ssh(lab, host, "echo text >/root/small").stderr
    assert ssh(lab, host, "echo text >/run/small").returncode == 0


def test_a_home_can_be_read_only(lab: Lab, fresh_host: FreshHost) -> None:
    """With readonly_home a login works and nothing can be written at home."""
    host = fresh_host(readonly_home=True, users=("alice",))
    assert "Read-only" in ssh(lab, host, "touch file").stderr
    assert "Read-only" in ssh(lab, host, "touch file", "alice").stderr
    assert ssh(lab, host, "touch /tmp/file").returncode == 0


def test_files_of_this_machine_can_be_shown(tmp_path: Path, fresh_host: FreshHost) -> None:
    """A file lands at its path, on PATH if under /opt/bin, and cannot be written."""
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho works\n")
    tool.chmod(0o755)
    host = fresh_host(files={"/opt/bin/tool": tool, "/root/.config/tools": tmp_path})
    assert host.run("tool").stdout == "works\n"
    assert host.run("ls", "/root/.config/tools").stdout == "tool\n"
    assert host.run("sh", "-c", "echo >/opt/bin/tool").returncode != 0


def test_hosts_can_install_from_the_index(lab: Lab, lab_hosts: LabHosts, tmp_path: Path) -> None:
    """A host's pip downloads a wheel from the lab's index."""
    info = "demo-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "demo-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("demo.py", "answer = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    url = lab.serve_index(tmp_path)
    (host,) = lab_hosts(1)
    pip = "python3 -m pip download -q --disable-pip-version-check -d /tmp/got"
    command = f"{pip} --index-url {url} --trusted-host {lab.gateway} demo && ls /tmp/got"
    done = ssh(lab, host, command)
    assert done.stdout.split() == ["demo-1.0-py3-none-any.whl"], done.stderr


def test_traffic_is_counted(lab: Lab, lab_hosts: LabHosts) -> None:
    """rx_bytes and tx_bytes are the host's own view."""
    (host,) = lab_hosts(1)
    received, sent = host.rx_bytes, host.tx_bytes
    ssh(lab, host, "head -c 1000000 /dev/zero")
    assert host.tx_bytes - sent > 1_000_000 > host.rx_bytes - received


def test_a_long_cable_has_its_round_trip(lab: Lab, fresh_host: FreshHost) -> None:
    """With delay=0.025 a TCP handshake takes 50 ms and little more, and ssh works over it."""
    host = fresh_host(delay=0.025)

    def handshake() -> float:
        start = time.monotonic()
        socket.create_connection((host.address, host.port), timeout=5).close()
        return time.monotonic() - start

    assert 0.05 <= min(handshake() for _ in range(5)) < 0.065
    assert ssh(lab, host, "hostname").stdout.strip() == host.name
    with open_line(host) as line:
        host.cut()
        with pytest.raises(TimeoutError):
            socket.create_connection((host.address, host.port), timeout=0.3)
        host.mend()
        line.sendall(b"SSH-2.0-test\r\n")
        line.settimeout(10)
        assert line.recv(1)


def test_a_lane_with_a_rate_queues_and_drops() -> None:
    """Frames leave one behind the other at the rate, and too long a queue loses its tail."""
    lane = Lane(delay=1.0, rate=1000.0)
    assert lane.leaves_at(100, now=0.0) == pytest.approx(1.1)
    assert lane.leaves_at(100, now=0.0) == pytest.approx(1.2)
    assert lane.leaves_at(100, now=0.0) == pytest.approx(1.3)
    assert lane.leaves_at(100, now=0.0) is None
    assert lane.leaves_at(100, now=5.0) == pytest.approx(6.1)


def test_two_labs_at_once(lab: Lab) -> None:
    """A second lab has its own subnet, and its end leaves the first alone."""
    with Lab() as other:
        (host,) = other.up(1)
        assert other.gateway != lab.gateway
        assert ssh(other, host, "hostname").stdout.strip() == host.name
    assert not host.alive
    assert Net(other.net.number).interfaces() == []
    (mine,) = lab.up(1)
    lab.remove(mine)
    with pytest.raises(LabError, match="closed"):
        other.up(1)


def test_a_killed_owner_leaves_nothing() -> None:
    """Two seconds after SIGKILL there are no processes, interfaces or folders."""
    argv = [sys.executable, "-c", OWNER]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as owner:
        assert owner.stdout is not None
        told = json.loads(owner.stdout.readline())
        net, folder = Net(told["number"]), Path(told["folder"])
        started = [told["room"], *told["processes"]]
        assert len(started) == 9  # the room, three hosts of two processes, a cable, an index
        assert [identity(pid) for pid, _ in started] == [tuple(seen) for seen in started]
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        deadline = time.monotonic() + 2

        def gone() -> bool:
            running = [pid for pid, start in started if identity(pid) == (pid, start)]
            return not running and not net.interfaces() and not folder.exists()

        eventually(gone, deadline - time.monotonic(), "nothing left of the killed owner's lab")


def test_the_next_lab_sweeps_after_a_killed_room() -> None:
    """A killed room takes its hosts along; what is left is removed by the next lab."""
    lost = Lab()
    (host,) = lost.up(1)
    room = json.loads((lost.folder / "state").read_text())["room"]
    os.kill(room[0], signal.SIGKILL)
    eventually(lambda: not host.alive, 2, "the host's end")
    with pytest.raises(LabError, match="gone"):
        lost.up(1)
    lost.close()
    with Lab():
        pass
    # Another run on this machine may have taken the number meanwhile, but then with its own room.
    state = lost.folder / "state"
    if state.exists():
        assert json.loads(state.read_text())["room"] != room
    else:
        assert not lost.folder.exists()
        assert lost.net.interfaces() == []


def test_a_host_that_cannot_start_says_why(lab: Lab) -> None:
    """A bad option surfaces as LabError with the console, and the lab goes on."""
    before = lab.hosts
    with pytest.raises(LabError, match=r"died while starting:\n.*mount"):
        lab.up(1, disk="much")
    assert lab.hosts == before


def test_by_hand() -> None:
    """`python -m tests.lab up` prints lines to paste and ends with its input."""
    argv = [sys.executable, "-m", "tests.lab", "up", "1"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith("Ctrl-C"):
            lines.append(process.stdout.readline())
        (login,) = [line for line in lines if line.startswith("ssh ")]
        assert any(line.startswith("sky.SSH(hosts=[") for line in lines)
        trusting = login.strip() + " -o StrictHostKeyChecking=yes hostname"
        done = subprocess.run(trusting, shell=True, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("lab")
        process.stdin.close()
        assert process.wait(30) == 0
