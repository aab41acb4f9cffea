"""What a task's process and its children get: the same as in a Python that the user started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

# Run as a program by itself, and imported by a task.
_VIEWS = """
    import ctypes, json, multiprocessing, os, resource, signal, subprocess, sys
    from pathlib import Path

    OURS = ("SKYWARD_", "OMP_", "OPENBLAS_", "MKL_", "BLIS_", "VECLIB_", "NUMBA_", "NUMEXPR_")  # documented

    def view(report=None):
        status = dict(line.split(":\\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
        death = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(death))
        os.umask(mask := os.umask(0))
        fds = []
        for fd in range(1024):
            try:
                os.fstat(fd)
            except OSError:
                continue
            fds.append(fd)
        seen = {
            # Without the two of the C library, 32 and 33, which its posix_spawn leaves ignored.
            "ignored": int(status["SigIgn"], 16) & ~(3 << 31), "blocked": status["SigBlk"], "fds": fds, "umask": mask,
            "handlers": {number.name: str(signal.getsignal(number)) for number in signal.Signals},
            "env": {name: value for name, value in os.environ.items() if not name.startswith(OURS)},
            "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "RLIMIT" in name},
            "nice": os.nice(0), "policy": os.sched_getscheduler(0), "cores": sorted(os.sched_getaffinity(0)),
            "oom": Path("/proc/self/oom_score_adj").read_text(), "cwd": os.getcwd(), "path": sys.path,
            "leads a session": os.getsid(0) == os.getpid(), "dies with its parent": death.value,
            "optimize": sys.flags.optimize, "warnings": sys.warnoptions,
        }
        return report.send(seen) if report is not None else seen

    def by_multiprocessing(method):
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=view, args=(theirs,))
        process.start()
        theirs.close()
        seen = ours.recv()
        process.join()
        ours.close()
        seen["fds"] = [fd for fd in seen["fds"] if fd < 3]  # multiprocessing has some of its own
        return seen

    def by_fork():
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(read)
            seen = view()
            seen["fds"].remove(write)
            os.write(write, json.dumps(seen).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as file:
            seen = json.load(file)
        os.wait()
        return seen

    def by_system():
        os.system(f"{sys.executable} {__file__} view >system.json")
        return json.loads(Path("system.json").read_text())

    def views():
        command = [sys.executable, __file__, "view"]
        own = view()
        own["fds"] = [fd for fd in own["fds"] if fd < 3]
        del own["leads a session"], own["dies with its parent"]  # as they must
        return {
            "itself": own,
            "subprocess": json.loads(subprocess.check_output(command)),
            "with open files": json.loads(subprocess.check_output(command, close_fds=False, start_new_session=True)),
            "os.system": by_system(),
            "os.fork": by_fork(),
            **{method: by_multiprocessing(method) for method in ("fork", "spawn", "forkserver")},
        }

    if __name__ == "__main__":
        print(json.dumps(view() if sys.argv[1:] else views()))
"""

_PROGRAM = """
    import json, subprocess, sys
    import views
    import skyward as sky

    if __name__ == "__main__":
        fresh = json.loads(subprocess.check_output([sys.executable, *{options}, views.__file__]))
        worker = sky.Worker(concurrency=1, executor="process")
        with sky.Compute(worker=worker, console=False, image=sky.Image(env={env})) as pool:
            print(json.dumps([fresh, pool.submit(views.views).result(60)]))
"""


def _as_by_nohup() -> None:
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    os.umask(0o027)
    os.nice(3)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["fork", "program"])
@pytest.mark.parametrize("start", [None, _as_by_nohup])
def test_children_get_what_those_of_a_fresh_python_get(tmp_path: Path, server: str, start: Any) -> None:
    options = ["-O", "-W", "ignore::ImportWarning"] if start else []
    env = {"PYTHONPATH": f"{tmp_path}/libraries"}
    program = _PROGRAM.format(options=options, env=env if server == "program" else {})
    (tmp_path / "views.py").write_text(textwrap.dedent(_VIEWS))
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, *options, str(tmp_path / "program.py")],
        preexec_fn=start, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=tmp_path, env={**os.environ, **env},
        check=True, timeout=120,
    )  # fmt: skip
    fresh, task = json.loads(done.stdout)
    for kind, seen in task.items():
        expected = fresh[kind]
        for name in ("env", "limits", "handlers"):
            assert seen.pop(name) == expected.pop(name), (kind, name)
        assert seen == expected, kind
