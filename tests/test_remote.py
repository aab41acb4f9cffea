"""Pools on real SSH hosts: what a user meets when machines, lines and processes fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed

import skyward as sky
from tests.lab import Host, Lab, eventually
from tests.lab.fixtures import FreshHost, LabHosts
from tests.remote import Reach, index, reach, wheels

__all__ = ["index", "reach", "wheels"]  # fixtures

pytestmark = pytest.mark.lab


def slow_double(x: int) -> int:
    import time

    time.sleep(0.1)
    return 2 * x


def hostname() -> str:
    import socket

    return socket.gethostname()


# Hosts don't have this module: what tests send must travel by value, as a user's script's functions do.
for function in (slow_double, hostname):
    function.__module__ = "__main__"


def test_joblib_on_hosts_without_skyward(lab_hosts: LabHosts, reach: Reach) -> None:
    """The same code with another provider: tasks run on all hosts, in the right environment, results in order."""
    hosts = lab_hosts(2)
    with sky.Compute(**reach(hosts), concurrency=2, plugins=[sky.plugins.joblib()]) as pool:
        assert pool.total_slots == 4
        assert Parallel(n_jobs=-1)(delayed(slow_double)(i) for i in range(40)) == [2 * i for i in range(40)]
        assert len(set(Parallel(n_jobs=-1, batch_size=1)(delayed(hostname)() for _ in range(40)))) == 2
    for host in hosts:
        host.wait_until_quiet()
        assert files_of_agents(host) == []


def files_of_agents(host: Host) -> list[str]:
    """What agents have for as long as they run."""
    places = "/root/.cache/skyward/run/* /tmp/skyward-* /dev/shm/skyward-*"
    return host.run("sh", "-c", f"find {places} 2>/dev/null").stdout.split()  # with what is in them, for the failure


def test_a_node_that_still_starts_when_the_block_ends_leaves_nothing(
    lab_hosts: LabHosts, fresh_host: FreshHost, reach: Reach
) -> None:
    """Its agent has started, the driver has not heard of it yet: nobody would say goodbye to it for ten minutes."""
    (near,), far = lab_hosts(1), fresh_host(delay=0.2)
    for _ in range(2):  # the second start is a command less
        with sky.Compute(**{**reach([near, far]), "nodes": (1, 2)}, concurrency=1):
            eventually(lambda: far.named("skyward-agent"), 120, "the far host's agent")
        far.wait_until_quiet()
        assert files_of_agents(far) == []


def test_the_second_start_is_quick(lab_hosts: LabHosts, reach: Reach) -> None:
    """Nothing is installed again when nothing changed."""
    hosts = lab_hosts(2)
    for _ in range(2):
        began = time.monotonic()
        with sky.Compute(**reach(hosts), concurrency=2, plugins=[sky.plugins.joblib()]):
            assert Parallel(n_jobs=-1)(delayed(abs)(i) for i in range(4)) == [0, 1, 2, 3]
            first_result = time.monotonic() - began
    assert first_result < 10  # the figure to reach is 3 s; this bound only guards against installing again


def test_image_pip_env_and_index(lab_hosts: LabHosts, reach: Reach) -> None:
    """Image(pip=..., env=..., index=...) is what tasks find."""
    arguments = reach(lab_hosts(1), image={"pip": ["threadpoolctl"], "env": {"COLOUR": "blue"}})
    with sky.Compute(**arguments) as pool:
        assert pool.submit(eval, "__import__('threadpoolctl').__name__").result(60) == "threadpoolctl"
        assert pool.submit(os.getenv, "COLOUR").result(60) == "blue"


@pytest.mark.parametrize("victim", ["slot", "agent"])
def test_kill_9_on_a_host_loses_nothing(victim: str, lab_hosts: LabHosts, reach: Reach) -> None:
    """A killed slot or agent: results are right all the same."""
    hosts = lab_hosts(2)
    workers = sky.Worker(concurrency=2, executor="process")
    with sky.Compute(**reach(hosts), worker=workers) as pool:
        futures = [pool.submit(slow_double, i) for i in range(60)]
        futures[5].result(60)
        chosen = eventually(lambda: hosts[0].named(f"skyward-{victim}"))
        hosts[0].run("kill", "-9", str(chosen[0]), check=True)
        assert [future.result(60) for future in futures] == [2 * i for i in range(60)]
    for host in hosts:
        host.wait_until_quiet()
        assert files_of_agents(host) == []


def test_pulling_the_plug_moves_the_tasks(lab_hosts: LabHosts, fresh_host: FreshHost, reach: Reach) -> None:
    """A host that vanishes without a word: its tasks run again on the other."""
    doomed, safe = fresh_host(), lab_hosts(1)[0]
    with sky.Compute(**reach([doomed, safe]), concurrency=2) as pool:
        futures = [pool.submit(slow_double, i) for i in range(40)]
        futures[3].result(60)
        doomed.kill()
        assert [future.result(110) for future in futures] == [2 * i for i in range(40)]


def test_a_cut_wire_is_survived(lab_hosts: LabHosts, reach: Reach) -> None:
    """The line is down for a while: tasks go on, nothing runs twice, results arrive once it is back."""
    (host,) = lab_hosts(1)
    with sky.Compute(**reach([host]), worker=sky.Worker(concurrency=2, executor="process")) as pool:
        counter = f"/tmp/count-{os.getpid()}"
        futures = [pool.submit(os.system, f"sleep 0.2; echo x >> {counter}") for _ in range(40)]
        futures[2].result(60)
        host.cut()
        time.sleep(1.0)  # the time that the line is down is the test's subject
        host.mend()
        assert [future.result(60) for future in futures] == [0] * 40
        assert pool.submit(Path(counter).read_text).result(60) == "x\n" * 40
        pool.submit(os.unlink, counter).result(60)


@pytest.mark.slow
def test_large_arguments_arrive_over_a_thin_line_and_through_cuts(fresh_host: FreshHost, reach: Reach) -> None:
    """At 300 kB/s, with small tasks in between; and when the line takes nothing for seconds in the middle of one."""
    host = fresh_host(delay=0.01)
    with sky.Compute(**reach([host]), concurrency=4) as pool:
        host.thin(300e3)
        large = [pool.submit(len, bytes(range(256)) * (4700 + j)) for j in range(3)]
        while not all(future.done() for future in large):
            assert pool.submit(abs, -1).result(60) == 1
        assert [future.result(0) for future in large] == [256 * (4700 + j) for j in range(3)]
        before = host.rx_bytes
        cut = pool.submit(len, os.urandom(600_000))
        eventually(lambda: host.rx_bytes - before > 100_000, 60, "the middle of it")
        host.cut()
        time.sleep(5.0)  # the time that the line is down is the test's subject
        host.mend()
        assert cut.result(60) == 600_000


def test_small_tasks_pass_a_large_argument_on_a_long_line(fresh_host: FreshHost, reach: Reach) -> None:
    """They are done while it is still being sent, over stripes; what shrinks is not sent as it is."""
    host = fresh_host(delay=0.025)
    with sky.Compute(**reach([host]), concurrency=2) as pool:
        assert pool.submit(abs, -1).result(60) == 1
        before = host.rx_bytes
        large = pool.submit(len, os.urandom(150_000_000))
        eventually(lambda: host.rx_bytes - before > 20_000_000, 60, "the middle of the large argument")
        small = [pool.submit(abs, -i) for i in range(20)]
        assert [future.result(60) for future in small] == list(range(20))
        assert not large.done()
        assert host.rx_bytes - before < 150_000_000
        assert large.result(60) == 150_000_000
        assert host.run("sh", "-c", "grep -c agent.sock /proc/net/unix").stdout.strip() == "6", "a listener and five"
        logins = [command for _, command in host.pids() if command.startswith("sshd: root")]
        assert len(logins) == 3, "small tasks have a connection to themselves, and what is large has two"
        before = host.rx_bytes
        assert pool.submit(len, b"0123456789abcdef" * 4_000_000).result(60) == 64_000_000
        assert host.rx_bytes - before < 10_000_000
    host.wait_until_quiet()


def test_a_pool_that_ends_while_a_large_argument_is_sent_leaves_nothing(fresh_host: FreshHost, reach: Reach) -> None:
    """The goodbye does not get lost in what is being sent."""
    host = fresh_host(delay=0.01)
    with pytest.raises(KeyError), sky.Compute(**reach([host]), concurrency=2) as pool:
        assert pool.submit(abs, -1).result(60) == 1
        before = host.rx_bytes
        large = pool.submit(len, os.urandom(100_000_000))
        eventually(lambda: host.rx_bytes - before > 5_000_000, 60, "the beginning of the large argument")
        raise KeyError("the user's own")
    assert large.cancelled()
    host.wait_until_quiet()


def test_a_dead_drivers_hosts_clean_themselves(lab: Lab, lab_hosts: LabHosts, index: str, tmp_path: Path) -> None:
    """kill -9 of the driver in mid-run: within orphan_timeout no process of ours is left on any host."""
    hosts = lab_hosts(2)
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import time
        import skyward as sky
        ssh = sky.SSH(hosts={[host.address for host in hosts]!r}, user="root", key={str(lab.key)!r},
                      known_hosts={str(lab.known_hosts)!r})
        with sky.Compute(provider=ssh, nodes=2, worker=sky.Worker(concurrency=2, executor="process"),
                         image=sky.Image(index={index!r}), orphan_timeout=2.0, console=False) as pool:
            futures = [pool.submit(time.sleep, 1000) for _ in range(4)]
            pool.events  # the pool is up
            print("running", flush=True)
            futures[0].result()
        """)
    )
    driver = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "running\n"
    assert all(any("worker.agent" in command for _, command in host.pids()) for host in hosts)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    for host in hosts:
        host.wait_until_quiet(15)


def _problem(kind: str, lab: Lab, fresh_host: FreshHost, reach: Reach) -> tuple[type[Exception], str, dict[str, Any]]:
    """A host with something wrong, and what the user is told."""
    if kind == "unreachable":
        provider = sky.SSH(
            hosts=[lab.unused_address()], user="root", key=str(lab.key), known_hosts=str(lab.known_hosts)
        )
        return sky.HostUnreachable, "answer|time", {"provider": provider, "console": False}
    if kind == "refused":
        return sky.LoginRefused, "root", reach([fresh_host(authorized=False)])
    if kind == "unknown key":
        empty = lab.folder / "no-known-hosts"
        empty.write_text("")
        return sky.HostKeyError, "known", reach([fresh_host()], known_hosts=str(empty))
    if kind == "wrong key":
        host = fresh_host()
        host.rekey()
        return sky.HostKeyError, "key", reach([host])
    if kind == "no python":
        return sky.PythonNotFound, f"{sys.version_info.major}.{sys.version_info.minor}", reach([fresh_host(pythons=())])
    if kind == "disk full":
        return sky.BootstrapFailed, "[Ss]pace|full", reach([fresh_host(disk="600K")])
    return sky.BootstrapFailed, "ermission|[Rr]ead-only|writ", reach([fresh_host(readonly_home=True)])


@pytest.mark.parametrize(
    "kind", ["unreachable", "refused", "unknown key", "wrong key", "no python", "disk full", "no write permission"]
)
def test_a_host_that_can_not_be_used_is_told_by_name(kind: str, lab: Lab, fresh_host: FreshHost, reach: Reach) -> None:
    """Each in its own type, with the host's address and what to do; nothing is left running."""
    error, words, arguments = _problem(kind, lab, fresh_host, reach)
    with pytest.raises(error, match=words) as caught, sky.Compute(**arguments):
        pass
    address = arguments["provider"].hosts[0]
    assert address in str(caught.value)


@pytest.mark.parametrize("options", [{"shell": "/bin/dash"}, {"bashrc": "echo noise"}])
def test_odd_logins_work(options: dict[str, Any], fresh_host: FreshHost, reach: Reach) -> None:
    """dash as the login shell, and a .bashrc that prints."""
    with sky.Compute(**reach([fresh_host(**options)])) as pool:
        assert pool.submit(abs, -1).result(60) == 1


def test_a_user_who_is_not_root(fresh_host: FreshHost, reach: Reach) -> None:
    """Everything is in the user's own home."""
    host = fresh_host(users=("alice",))
    with sky.Compute(**reach([host], user="alice")) as pool:
        assert pool.submit(os.getuid).result(60) != 0


def test_more_nodes_than_hosts_is_told(lab_hosts: LabHosts, reach: Reach) -> None:
    """Not half a pool, and not a wait."""
    with pytest.raises(sky.ConfigError, match="nodes=3, but provider ssh has 1 machine: name more"):
        sky.Compute(**{**reach(lab_hosts(1)), "nodes": 3})


def _break_lines(host: Host) -> None:
    for pid, command in host.pids():
        if "sshd: root" in command:
            host.run("kill", str(pid))


def test_a_pool_that_ends_as_its_line_breaks_leaves_nothing(fresh_host: FreshHost, reach: Reach) -> None:
    """The goodbye is said again over another one: the agent would wait ten minutes for its owner."""
    host = fresh_host()
    with sky.Compute(**reach([host]), concurrency=2) as pool:
        assert pool.submit(slow_double, 4).result(60) == 8
        _break_lines(host)
    host.wait_until_quiet()
    assert files_of_agents(host) == []


def test_a_host_that_forwards_nothing_and_allows_one_session_at_a_time(fresh_host: FreshHost, reach: Reach) -> None:
    """The agent is reached through a command. Large arrays, a line that breaks and the end are as elsewhere."""
    host = fresh_host(sshd=("DisableForwarding yes", "MaxSessions 1"))
    data = os.urandom(8_000_000)
    with sky.Compute(**reach([host]), concurrency=2) as pool:
        assert pool.submit(len, data).result(60) == len(data)
        assert pool.submit(bytes.lower, data).result(60) == data.lower()
        task = pool.submit(slow_double, 4)
        _break_lines(host)
        assert task.result(60) == 8
    host.wait_until_quiet()
