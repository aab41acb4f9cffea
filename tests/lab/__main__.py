"""Machines to play with by hand: ``python -m tests.lab up 3`` until Ctrl-C or end of input."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from types import FrameType

from . import Host, Lab, missing


def main(argv: list[str] | None = None) -> int:
    """Start hosts, say how to reach them, and remove them when told to."""
    args = _parser().parse_args(argv)
    reason = missing()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Lab() as lab:
            hosts = lab.up(
                args.n,
                pythons=tuple(args.python) if args.python else None,
                shell=args.shell,
                users=tuple(args.user),
                disk=args.disk,
                delay=args.delay,
            )
            print(_directions(lab, hosts), flush=True)
            for _ in sys.stdin:
                pass
    except KeyboardInterrupt:
        pass
    return 0


def _directions(lab: Lab, hosts: list[Host]) -> str:
    """How to reach the hosts, ready to paste."""
    options = f"-i {shlex.quote(str(lab.key))} -o UserKnownHostsFile={lab.known_hosts}"
    addresses = ", ".join(f'"{host.address}"' for host in hosts)
    lines = [f"{host.address}  {host.name}" for host in hosts]
    lines += [f"key          {lab.key}", f"known_hosts  {lab.known_hosts}", ""]
    lines += [f"ssh {options} root@{host.address}" for host in hosts]
    lines += [
        "",
        f'sky.SSH(hosts=[{addresses}], user="root", key="{lab.key}", known_hosts="{lab.known_hosts}")',
        "",
        "Ctrl-C or the end of input removes them.",
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="up")
    up = verbs.add_parser("up", help="start hosts")
    up.add_argument("n", type=int, nargs="?", default=1, help="how many (default: 1)")
    up.add_argument("--python", action="append", metavar="3.X", help="a Python they have")
    up.add_argument("--shell", default="/bin/bash", help="login shell (default: /bin/bash)")
    up.add_argument("--user", action="append", default=[], help="a user besides root")
    up.add_argument("--disk", default="50%", help="size of the disk, such as 20M")
    up.add_argument("--delay", type=float, default=0.0, help="seconds one way to reach them")
    return parser


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
