"""How fast skyward is, compared with what a user would use instead and with the limits of the machine.

::

    python -m benchmarks --peers skyward-local,loky --workloads noop,shared --runs 5 --json out.json --markdown out.md

`workloads` defines what is measured, once, against joblib's API; `peers` has a module for each library that is
measured; `limits` measures what nothing on this machine can exceed. A `runner` is the process in which one peer runs
one workload, `series` lets runners take turns, `figures` reduces their figures, and `report` prints them. `counts` is
separate: it counts work that does not depend on how busy the machine is, so that a test can compare it from commit to
commit.
"""
