"""Bootstrap of real hosts: environments by pip and uv, reuse, and each way in which a host can be unfit."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import re
import shutil
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import pytest

from skyward.core.errors import BootstrapFailed, ConfigError, LinkError, PackagesFailed, PythonNotFound
from skyward.core.image import Image
from skyward.core.interfaces import CommandOutput, Shell
from skyward.core.nodes import bootstrap as bootstrap_module
from skyward.core.nodes.bootstrap import AgentAddress, bootstrap
from skyward.core.protocol.messages import Welcome
from skyward.core.protocol.wire import Role, Wire
from skyward.core.spec import Endpoint
from skyward.transport.ssh import SSHTransport
from tests.lab import Host, Lab, eventually
from tests.wheels import wheels

__all__ = ["wheels"]  # a fixture

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
CACHE = "/root/.cache/skyward"


class CountingShell:
    """Counts round trips."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.trips = 0

    async def run(self, command: str, *, input: bytes | None = None, timeout: float | None = None) -> CommandOutput:
        self.trips += 1
        return await self.shell.run(command, input=input, timeout=timeout)

    async def put(self, data: bytes, path: str) -> None:
        self.trips += 1
        await self.shell.put(data, path)


class Start:
    """What one bootstrap gave."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.trips = 0
        self.seconds = 0.0
        self.agent = AgentAddress("", b"")

    @property
    def built(self) -> bool:
        return any("environment" in step for step in self.steps)


Boot = Callable[..., Start]


@pytest.fixture(scope="session")
def index(lab: Lab, wheels: Path) -> str:
    return lab.serve_index(wheels)


@pytest.fixture
def boot(lab: Lab, index: str) -> Boot:
    """Bootstraps a host over SSH and lets its agent prove that it knows the secret."""

    def start(host: Host, image: Image | None = None, *, user: str = "root", **more: str) -> Start:
        return asyncio.run(_boot(address(lab, host, user), image or Image(index=index), **more))

    return start


def address(lab: Lab, host: Host, user: str = "root") -> Endpoint:
    options = {"keys": [str(lab.key)], "known_hosts": str(lab.known_hosts), "config": []}
    return Endpoint("ssh", host.address, None, user, options)


async def _boot(endpoint: Endpoint, image: Image, **more: str) -> Start:
    start = Start()
    link = await SSHTransport().connect(endpoint, 10)
    try:
        shell = CountingShell(link.shell)
        begin = time.monotonic()
        start.agent = await bootstrap(shell, image, orphan_timeout=60, on_step=start.steps.append, **more)
        start.seconds = time.monotonic() - begin
        start.trips = shell.trips
        await _greet(await link.open_channel(start.agent.address), start.agent.secret)
    finally:
        await link.close()
    return start


async def _greet(channel, secret: bytes) -> None:
    """The agent answers, and proves that it knows the secret (the wire checks that)."""
    wire = Wire(Role.OWNER, secret=secret, nonce=os.urandom(16))
    wire.hello("session", 0)
    channel.write(wire.data_to_send())
    messages = []
    while not messages:
        data = await channel.read()
        assert data, "the agent hung up"
        messages = wire.receive_data(data)
    assert isinstance(messages[0].message, Welcome)
    channel.close()


def agents(host: Host) -> list[int]:
    ours = {pid for pid, command in host.pids() if "skyward.worker.agent" in command}
    parents = {}
    for pid in ours:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            parents[pid] = int((host.root / f"proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in parents.items() if parent not in ours]  # a fork server has its agent's command line


def environments(host: Host, cache: str = CACHE) -> list[str]:
    done = host.run("sh", "-c", f"ls -d {cache}/envs/*/.complete 2>/dev/null")
    return [Path(line).parent.name for line in done.stdout.splitlines()]


def uv() -> dict[str, str]:
    """uv as a file of the host."""
    program = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    return {"/opt/bin/uv": program}


def installing(fresh_host: Callable[..., Host], *, with_uv: bool, **options) -> Host:
    """A host that has uv, or one to which none can be sent, so that pip makes environments."""
    host = fresh_host(files=uv() if with_uv else {}, **options)
    if not with_uv:
        host.run("sh", "-c", 'rm "$(command -v gzip)"', check=True)
    return host


def failure(boot: Boot, host: Host, kind: type[BootstrapFailed] = BootstrapFailed, image: Image | None = None, **more):
    with pytest.raises(BootstrapFailed) as caught:
        boot(host, image, **more)
    assert type(caught.value) is kind, caught.value
    return str(caught.value)


# --- the ways that work ---


@pytest.mark.lab
def test_the_second_start_makes_nothing_anew_and_takes_one_round_trip(boot, fresh_host):
    host = fresh_host()
    first, second = boot(host), boot(host)
    assert first.built
    assert second.steps == ["inspecting the host"]
    assert second.trips == 1
    assert second.seconds < first.seconds / 2
    assert first.agent.secret != second.agent.secret
    assert first.agent.address != second.agent.address
    assert len(agents(host)) == 2
    print(f"first start {first.seconds:.2f} s, second {second.seconds:.2f} s")


@pytest.mark.lab
def test_uv_makes_the_environment_where_it_is(boot, fresh_host):
    host = fresh_host(files=uv())
    first, second = boot(host), boot(host)
    assert "making an environment with uv" in first.steps
    assert second.trips == 1
    config = host.run("sh", "-c", f"cat {CACHE}/envs/*/pyvenv.cfg").stdout
    assert "uv =" in config


@pytest.mark.lab
@pytest.mark.parametrize("with_uv", [True, False], ids=["uv", "pip"])
def test_requirements_come_from_the_index_that_the_image_names(boot, fresh_host, index, with_uv):
    host = installing(fresh_host, with_uv=with_uv)
    image = Image(pip=["joblib"], index=index.replace("http://", "http://name:secret@"))
    boot(host, image)
    python = f"{CACHE}/envs/{environments(host)[0]}/bin/python"
    done = host.run(python, "-c", "import joblib, cloudpickle, msgpack; print(cloudpickle.__version__)", check=True)
    assert done.stdout.strip() == cloudpickle.__version__
    left = host.run("grep", "-rl", "name:secret", CACHE).stdout
    assert not left, "the index's password stays on the host"
    assert not boot(host, image).built
    assert boot(host).built, "another set of packages needs another environment"
    assert len(environments(host)) == 2


@pytest.mark.lab
@pytest.mark.parametrize("user", ["root", "ann"])
@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/dash"])
def test_login_shells_noise_and_users_do_not_matter(boot, fresh_host, shell, user):
    noise = "echo hello; cat /etc/passwd; echo '{}' >&2; cd /"
    host = fresh_host(shell=shell, users=("ann",), bashrc=noise, files=uv())
    boot(host, user=user)
    home = "/root" if user == "root" else "/home/ann"
    assert host.run("stat", "-c", "%a %U", f"{home}/.cache/skyward/run").stdout == f"700 {user}\n"
    (pid,) = agents(host)
    assert host.run("stat", "-c", "%U", f"/proc/{pid}").stdout == f"{user}\n"


@pytest.mark.lab
def test_the_secret_is_in_no_command_line_and_no_environment(boot, fresh_host):
    host = fresh_host(files=uv())
    secret = boot(host).agent.secret
    (pid,) = agents(host)
    for name in ("cmdline", "environ"):
        data = (host.root / f"proc/{pid}/{name}").read_bytes()
        assert data
        assert secret not in data
        assert secret.hex().encode() not in data


@pytest.mark.lab
def test_a_long_home_gets_its_socket_in_a_short_place(boot, fresh_host):
    cache = "/root/" + "long/" * 20
    host = fresh_host(files=uv(), bashrc=f"export XDG_CACHE_HOME={cache}")
    start = boot(host)
    assert start.agent.address.startswith("/tmp/skyward-")
    assert host.run("stat", "-c", "%a", str(Path(start.agent.address).parent)).stdout == "700\n"
    assert environments(host, f"{cache}/skyward")
    assert not boot(host).built


@pytest.mark.lab
def test_half_an_environment_is_made_anew(boot, fresh_host):
    host = fresh_host(files=uv())
    boot(host)
    (name,) = environments(host)
    env = f"{CACHE}/envs/{name}"
    host.run("sh", "-c", f"rm -r {env}/.complete {env}/lib/python*/site-packages/cloudpickle/*", check=True)
    assert boot(host).built
    host.run("rm", f"{env}/bin/python", check=True)  # as when the base Python went away
    assert boot(host).built
    assert not boot(host).built


@pytest.mark.lab
def test_broken_code_or_packages_fail_one_start_and_are_made_anew_by_the_next(boot, fresh_host):
    host = fresh_host(files=uv())
    boot(host)
    (name,) = environments(host)
    host.run("sh", "-c", f"for f in {CACHE}/code/*; do echo garbage >$f; done", check=True)
    text = failure(boot, host)
    assert text.startswith("starting the agent failed")
    assert "No module named" in text
    assert boot(host).steps == ["inspecting the host", "sending the code", "starting the agent"]
    host.run("sh", "-c", f"rm {CACHE}/envs/{name}/lib/python*/site-packages/msgpack/*.py", check=True)
    assert "msgpack" in failure(boot, host)
    assert boot(host).built
    assert len(host.run("ls", f"{CACHE}/run").stdout.split()) == 3, "failed starts leave nothing"


@pytest.mark.lab
@pytest.mark.parametrize("flock", [True, False], ids=["flock", "folder"])
def test_several_drivers_at_a_time_make_one_environment(boot, fresh_host, flock):
    host = fresh_host(files=uv())
    if not flock:
        host.run("rm", "/usr/bin/flock", check=True)
    with ThreadPoolExecutor(3) as pool:
        starts = list(pool.map(boot, [host] * 3))
    assert all(start.agent.address for start in starts)
    assert len(environments(host)) == 1
    assert len(agents(host)) == 3


@pytest.mark.lab
def test_the_lock_of_a_dead_driver_is_broken(boot, fresh_host):
    host = fresh_host(files=uv())
    host.run("rm", "/usr/bin/flock", check=True)
    boot(host)
    (name,) = environments(host)
    lock = f"{CACHE}/envs/{name}.lock.d"
    host.run("sh", "-c", f"mkdir {lock} && echo {host.name} 999999 >{lock}/owner && rm {CACHE}/envs/{name}/.complete")
    start = boot(host)
    assert start.built
    assert start.seconds < 10
    assert host.run("ls", lock).returncode != 0


@pytest.mark.lab
def test_what_nobody_uses_is_swept_away(boot, fresh_host):
    host = fresh_host(files=uv())
    live = Path(boot(host).agent.address).parent
    gone = Path(boot(host).agent.address).parent
    (name,) = environments(host)
    pid = host.run("cat", f"{gone}/pid").stdout.split()[0]
    host.run("kill", "-9", pid, check=True)
    eventually(lambda: int(pid) not in agents(host), what="the agent's end")
    old, reused, young, broken = (f"{CACHE}/{path}" for path in ("envs/old", "run/reused", "run/young", "run/broken"))
    script = f"""
        mkdir {old} {reused} {young} {broken} && : >{old}/.complete && : >{CACHE}/code/old.zip
        cp {live}/owner {reused} && echo 1 12345 >{reused}/pid  # another process has the number now
        cp {live}/owner {young}
        touch -d '-2 hours' {broken}
        touch -d '-3 days' {CACHE}/.swept
        touch -d '-70 days' {old}/.complete {CACHE}/code/old.zip
    """
    host.run("sh", "-c", script, check=True)
    boot(host)
    left = host.run("find", CACHE, "-maxdepth", "2").stdout.split()
    assert {str(live), young} <= set(left)
    assert not {str(gone), reused, broken, old, f"{CACHE}/code/old.zip"} & set(left)
    assert f"{CACHE}/envs/{name}" in left


@pytest.mark.lab
def test_a_python_without_pip_gets_the_drivers(boot, fresh_host):
    if not list(Path(sys.base_prefix).glob("lib/python*/ensurepip/_bundled/pip-*.whl")):
        pytest.skip("this Python carries no pip itself")
    host = fresh_host()
    site = f"/opt/python/{MINOR}/lib/python{MINOR}"
    # as Debian's python3 without python3-venv
    host.run("sh", "-c", 'rm "$(command -v gzip)"', check=True)  # no uv either
    for folder in (f"{site}/ensurepip", f"{site}/site-packages"):
        host.run("mount", "-t", "tmpfs", "empty", folder, check=True)
    start = boot(host)
    assert "sending pip" in start.steps
    assert environments(host)


@pytest.mark.lab
def test_debian_packages_that_are_there_cost_nothing(boot, fresh_host, index):
    host = fresh_host(files=uv())
    boot(host, Image(index=index, apt=["bash", "coreutils"]))
    assert boot(host, Image(index=index, apt=["bash"])).trips == 2


# --- the ways that don't ---


@pytest.mark.lab
def test_debian_packages_need_root(boot, fresh_host, index):
    host = fresh_host(users=("ann",), files=uv())
    text = failure(boot, host, image=Image(index=index, apt=["no-such-package"]), user="ann")
    assert "installing no-such-package" in text
    assert "needs root" in text


@pytest.mark.lab
def test_no_python_names_those_that_are_there(boot, fresh_host, monkeypatch):
    monkeypatch.setenv("UV_OFFLINE", "1")
    host = fresh_host(pythons=())
    text = failure(boot, host, PythonNotFound)
    assert f"no Python {MINOR}" in text
    host.run("sh", "-c", "printf '#!/bin/sh\\n' >/usr/local/bin/python3.7; chmod +x /usr/local/bin/python3.7")
    assert "it has python3.7" in failure(boot, host, PythonNotFound)


@pytest.mark.lab
def test_a_python_that_does_not_run_is_none(boot, fresh_host, monkeypatch):
    monkeypatch.setenv("UV_OFFLINE", "1")
    host = fresh_host(pythons=())
    host.run("sh", "-c", f"echo garbage >/usr/local/bin/python{MINOR}; chmod +x /usr/local/bin/python{MINOR}")
    assert "garbage" in failure(boot, host, PythonNotFound)


@pytest.mark.lab
def test_a_disk_without_inodes_is_said(boot, fresh_host, index):
    """Each step finds as little room as the first: nothing was written for it."""
    host = fresh_host(disk="50m,nr_inodes=120", files=uv())
    host.run("sh", "-c", "i=0; while touch /root/fill.$i 2>/dev/null; do i=$((i+1)); done")
    text = failure(boot, host)
    assert text.startswith("inspecting the host failed")
    assert re.search(rf"the disk with {CACHE} \(mounted at /root\) can't hold more files \(0 inodes", text)
    assert "the disk with /tmp (mounted at /tmp)" in text
    host.run("sh", "-c", "cd /root; rm fill.1 fill.2 fill.3 fill.4 fill.5 fill.6 fill.7 fill.8 fill.9")
    assert "can't hold more files" in failure(boot, host), "there is room for the look, and not for an environment"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("@disk /a|/|900000|900000\n@disk /tmp|/tmp|0|500", "the disk with /tmp (mounted at /tmp) is full (0 MB free)"),
        ("@disk /a|/|2048|-\n@disk /tmp|/tmp||", "the disk with /a (mounted at /) is full (2 MB free)"),
        ("@disk /a|/|900000|3", "can't hold more files (3 inodes left)"),
        ("@disk /a|/|900000|-\nelse", None),
    ],
)
def test_which_disk_is_full_is_read_from_what_the_host_says(lines, words):
    found = bootstrap_module._full(lines)
    assert found is None if words is None else words in str(found)


# --- what only a login shell, or the user, knows ---


def module_host(fresh_host: Callable[..., Host]) -> Host:
    """Its Python lies where nobody looks, and is in PATH after `module load python`, a function of login shells."""
    host = fresh_host()
    host.run("mount", "--move", f"/opt/python/{MINOR}", "/mnt", check=True)
    (host.root / "root/.bash_profile").write_text(
        "echo noise from the profile; read line\n"
        'module() { [ "$1 $2" = "load python" ] || return 1; PATH=/mnt/bin:$PATH LD_LIBRARY_PATH=/mnt/lib; '
        'export PATH LD_LIBRARY_PATH LOADED="it is"; }\n'
    )
    return host


@pytest.mark.lab
def test_a_prelude_makes_the_environment_of_all_that_follows(boot, fresh_host, index, monkeypatch):
    monkeypatch.setenv("UV_OFFLINE", "1")
    host = module_host(fresh_host)
    assert "no Python" in failure(boot, host, PythonNotFound)
    start = boot(host, prelude="module load python")
    assert start.built
    (pid,) = agents(host)
    assert "LOADED=it is" in (host.root / f"proc/{pid}/environ").read_text().split("\0")
    assert not [entry for entry in (host.root / f"proc/{pid}/environ").read_text().split("\0") if "SKYWARD_SC" in entry]
    assert not boot(host, prelude="module load python").built
    assert "the prelude failed (module load other)" in failure(boot, host, prelude="module load other")


@pytest.mark.lab
def test_the_python_that_is_asked_for_is_used_and_no_other(boot, fresh_host):
    host = fresh_host(files=uv())
    host.run("sh", "-c", f"mkdir /root/own; mount --rbind /opt/python/{MINOR} /root/own", check=True)
    assert "making an environment with uv" in boot(host, python=f"~/own/bin/python{MINOR}").steps
    assert "home = /root/own/bin" in host.run("sh", "-c", f"cat {CACHE}/envs/*/pyvenv.cfg").stdout
    assert not boot(host, python=f"/root/own/bin/python{MINOR}").built
    assert boot(host).built, "another Python needs another environment"
    text = failure(boot, host, PythonNotFound, python="/no/such/python")
    assert "SSH python='/no/such/python' is not a program on the host" in text
    (host.root / "root/odd").write_text("#!/bin/sh\nexit 1\n")
    (host.root / "root/odd").chmod(0o700)
    assert f"is not Python {MINOR} on the host" in failure(boot, host, PythonNotFound, python="~/odd")


@pytest.mark.lab
@pytest.mark.parametrize("with_uv", [True, False], ids=["uv", "pip"])
def test_the_images_variables_hold_while_packages_are_installed(boot, fresh_host, index, with_uv):
    host = installing(fresh_host, with_uv=with_uv)
    name = "UV_INDEX_URL" if with_uv else "PIP_INDEX_URL"
    host_name = index.split("//")[1].split("/")[0].partition(":")[0]
    env = {name: index, "UV_INSECURE_HOST": host_name, "PIP_TRUSTED_HOST": host_name, "not a name": "x", "root": "/no"}
    assert boot(host, Image(env=env)).built


PIP_CONF = """[install]
target = /root/libs
require-hashes = true
root = /root/r
[global]
no-binary = :all:
no-index = true
"""
UV_TOML = 'python-preference = "only-managed"\n[pip]\ntarget = "/root/libs"\nrequire-hashes = true\nno-index = true\n'


@pytest.mark.lab
@pytest.mark.parametrize("with_uv", [True, False], ids=["uv", "pip"])
def test_settings_of_the_host_that_suit_other_work_break_nothing(boot, fresh_host, index, wheels, with_uv):
    """And requirements with hashes are checked, beside those that have none."""
    host = installing(fresh_host, with_uv=with_uv)
    for path, text in (("pip/pip.conf", PIP_CONF), ("uv/uv.toml", UV_TOML)):
        (host.root / "root/.config" / path).parent.mkdir(parents=True)
        (host.root / "root/.config" / path).write_text(text)
    wheel = next(wheels.glob("joblib-*.whl"))
    pinned = f"joblib=={wheel.name.split('-')[1]} --hash=sha256:"
    text = failure(boot, host, PackagesFailed, Image(index=index, pip=[pinned + 64 * "0"]))
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in text
    image = Image(index=index, pip=[pinned + hashlib.sha256(wheel.read_bytes()).hexdigest(), "threadpoolctl"])
    assert boot(host, image).built
    assert not (host.root / "root/libs").exists()
    left = host.run("sh", "-c", f"ls {CACHE}/envs/*").stdout
    assert ".txt" not in left
    assert "uv.toml" not in left


@pytest.mark.lab
def test_a_repository_needs_its_program_on_the_host(boot, fresh_host, index):
    # Hosts have the programs that we have.
    program = next(name for name in ("bzr", "hg", "svn", "git") if shutil.which(name) is None)
    line = f"x @ {program}+https://example.test/x"
    text = failure(boot, fresh_host(), PackagesFailed, Image(index=index, pip=[line]))
    assert repr(line) in text
    assert f"fetched with {program}, which the host does not have" in text


@pytest.mark.lab
@pytest.mark.parametrize("with_uv", [True, False], ids=["uv", "pip"])
def test_a_full_disk_is_said_with_what_is_free(boot, fresh_host, index, with_uv):
    host = installing(fresh_host, with_uv=with_uv, disk="3m")
    text = failure(boot, host, image=Image(pip=["joblib"], index=index))
    assert re.search(rf"the disk with {CACHE} \(mounted at /root\) is full \(\d MB free\)", text)
    assert not environments(host)


@pytest.mark.lab
def test_a_disk_that_fills_up_later_is_said_too(boot, fresh_host):
    host = fresh_host(disk="40m", files=uv())
    boot(host)
    fill = f"rm {CACHE}/code/*; dd if=/dev/zero of=/root/filler bs=64k"
    assert "No space left" in host.run("sh", "-c", fill).stderr
    text = failure(boot, host)
    assert text.startswith("sending the code failed")
    assert "is full" in text
    host.run("rm", "/root/filler")
    assert not boot(host).built


@pytest.mark.lab
def test_a_home_that_cannot_be_written_is_said(boot, fresh_host):
    text = failure(boot, fresh_host(readonly_home=True))
    assert "no permission to write" in text
    assert "Read-only file system" in text
    host = fresh_host(users=("ann",))
    host.run("sh", "-c", "mkdir /home/ann/.cache; chown root /home/ann/.cache; chmod 755 /home/ann/.cache")
    assert "Permission denied" in failure(boot, host, user="ann")


@pytest.mark.lab
def test_a_home_that_programs_may_not_run_from_is_said(boot, fresh_host):
    host = fresh_host()
    host.run("mount", "-o", "remount,bind,noexec", "/root", check=True)
    assert "noexec" in failure(boot, host)


@pytest.mark.lab
@pytest.mark.parametrize("with_uv", [True, False], ids=["uv", "pip"])
def test_a_package_that_does_not_exist_is_said(boot, fresh_host, index, with_uv):
    host = installing(fresh_host, with_uv=with_uv)
    text = failure(boot, host, PackagesFailed, image=Image(pip=["no-such-package-at-all"], index=index))
    assert "no-such-package-at-all" in text
    assert "could not be installed" in text
    assert len(text.splitlines()) <= 16
    assert not environments(host)


FAILS = """
import sys
def build_wheel(*_, **__):
    sys.stderr.write("fast.c:1: fatal error: missing.h: No such file or directory\\n")
    sys.exit(1)
"""
SOURCE = {
    "pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n",
    "backend.py": FAILS,
    "PKG-INFO": "Metadata-Version: 2.2\nName: fails\nVersion: 1.0\n",
}


@pytest.mark.lab
def test_what_can_not_be_built_there_or_has_no_build_is_said_at_once(lab, boot, fresh_host, wheels, tmp_path):
    """By its last lines, without a second try by another installer, and nothing is left that looks whole."""
    for wheel in wheels.glob("*.whl"):
        (tmp_path / wheel.name).symlink_to(wheel)
    (tmp_path / "mac-1.0-cp311-abi3-macosx_11_0_arm64.whl").write_bytes(b"")
    with tarfile.open(tmp_path / "fails-1.0.tar.gz", "w:gz") as archive:
        for name, text in SOURCE.items():
            entry = tarfile.TarInfo(f"fails-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    index, host = lab.serve_index(tmp_path), fresh_host(files=uv())
    text = failure(boot, host, PackagesFailed, Image(pip=["fails"], index=index))
    assert "fast.c:1: fatal error: missing.h" in text
    assert text.count("missing.h") == 1, "it was built once"
    text = failure(boot, host, PackagesFailed, Image(pip=["mac"], index=index))
    assert "mac" in text
    assert "no wheels with a matching platform tag" in text
    assert not environments(host)


@pytest.mark.lab
def test_a_line_that_breaks_is_a_link_error_and_the_next_start_works(lab, boot, fresh_host, index):
    host = fresh_host()

    async def main() -> None:
        link = await SSHTransport().connect(address(lab, host), 10)

        def cut(step: str) -> None:
            if "environment" in step:
                asyncio.get_running_loop().create_task(link.close())

        with pytest.raises(LinkError):
            await bootstrap(link.shell, Image(index=index), orphan_timeout=60, on_step=cut)

    asyncio.run(main())
    assert boot(host).agent.address


# --- without a host ---


@pytest.mark.parametrize("values", [{"apt": ["a b"]}, {"apt": ["-y"]}, {"apt": ["$(reboot)"]}, {"pip": ["a\nb"]}])
def test_nonsense_in_the_image_is_a_config_error_before_anything_runs(values):
    with pytest.raises(ConfigError):
        asyncio.run(bootstrap(None, Image(**values), orphan_timeout=1, on_step=lambda _: None))  # type: ignore[arg-type]


def test_a_host_that_does_not_end_a_step_in_time_is_said():
    class Slow:
        async def run(self, command, *, input=None, timeout=None):
            raise TimeoutError

    with pytest.raises(BootstrapFailed, match="inspecting the host took more than 60 s"):
        asyncio.run(bootstrap(Slow(), Image(), orphan_timeout=1, on_step=lambda _: None))
