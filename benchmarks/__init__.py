"""How fast skyward is, beside what a user would pick instead and beside what the machine can do at all.

::

    python -m benchmarks --peers skyward-local,loky --workloads noop,shared --runs 5 --json out.json --markdown out.md

`workloads` says what is measured, written once against joblib's API; `peers` says who does it, one module for each;
`limits` measures what nobody can beat on this machine. A `runner` is the process in which one peer does one workload,
`series` lets runners take turns, `figures` reduces what they say, and `report` prints it. `counts` stands apart: it
counts work that does not depend on how busy the machine is, so that a test can compare it from commit to commit.
"""
