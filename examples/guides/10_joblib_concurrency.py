"""joblib's Parallel on many nodes: how close do 2000 tasks on 100 workers come to the ideal time?

Run it here, as 10 nodes on this machine with 10 workers each:

    python examples/guides/10_joblib_concurrency.py

The same on hosts that you reach by SSH:

    python examples/guides/10_joblib_concurrency.py --provider ssh --host 10.0.0.5 --host me@box:2222 --seconds 5
"""

from __future__ import annotations

import argparse
from time import perf_counter, sleep

from joblib import Parallel, delayed

import skyward as sky


def slow_task(x: int, seconds: float) -> int:
    """Take `seconds` without using a core, like a task that waits for a disk or a network."""
    sleep(seconds)
    return x * 2


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", default="local", help="local, ssh, or any installed provider's name")
    parser.add_argument("--nodes", type=int, help="number of machines (default: 10, or one per --host)")
    parser.add_argument("--concurrency", type=int, default=10, help="concurrent tasks per node (default: 10)")
    parser.add_argument("--tasks", type=int, default=2000, help="how many tasks (default: 2000)")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each task takes (default: 0.5)")
    ssh = parser.add_argument_group("with --provider ssh")
    ssh.add_argument("--host", action="append", default=[], help="HOST, USER@HOST or HOST:PORT; repeat for more")
    ssh.add_argument("--user", help="login name for hosts that don't give one")
    ssh.add_argument("--key", help="private key file (default: as ssh does)")
    ssh.add_argument("--known-hosts", help="file with the hosts' keys (default: ~/.ssh/known_hosts)")
    arguments = parser.parse_args()
    if arguments.nodes is None:
        arguments.nodes = len(arguments.host) or 10
    if arguments.provider == "ssh" and not arguments.host:
        parser.error("--provider ssh needs at least one --host")
    return arguments


def choose_provider(arguments: argparse.Namespace) -> object:
    """Return the provider: SSH needs its hosts, any other is given by name."""
    if arguments.provider != "ssh":
        return arguments.provider
    options = {"user": arguments.user, "key": arguments.key, "known_hosts": arguments.known_hosts}
    return sky.SSH(hosts=arguments.host, **{name: value for name, value in options.items() if value is not None})


def main() -> None:
    arguments = parse_arguments()
    tasks, nodes, concurrency, seconds = arguments.tasks, arguments.nodes, arguments.concurrency, arguments.seconds

    with sky.Compute(
        provider=choose_provider(arguments),
        nodes=nodes,
        worker=sky.Worker(concurrency=concurrency),
        plugins=[sky.plugins.joblib()],
    ):
        started = perf_counter()
        results = Parallel(n_jobs=-1)(delayed(slow_task)(i, seconds) for i in range(tasks))
        elapsed = perf_counter() - started

    workers = nodes * concurrency
    ideal = tasks / workers * seconds
    print(f"Tasks: {tasks} | Nodes: {nodes} | Concurrency: {concurrency}")
    print(f"Effective workers: {workers}")
    print(f"Total time: {elapsed:.2f}s")
    print(f"Throughput: {tasks / elapsed:.2f} tasks/s")
    print(f"Ideal time ({tasks} tasks / {workers} workers * {seconds:g}s): {ideal:g}s")
    print(f"Efficiency: {ideal / elapsed * 100:.1f}%")
    if results != [2 * i for i in range(tasks)]:
        raise SystemExit("Results: WRONG")
    print(f"Results: all {tasks} correct and in order")


if __name__ == "__main__":
    main()
