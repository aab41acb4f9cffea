"""Opens a pool in the scripts that joblib's tests start, since these name our backend and open none.

Python imports this module by its name when it starts, where its folder is in PYTHONPATH.
"""

import os

if os.environ.pop("SKYWARD_SUITE_CHILD", None):  # taken away first: agents and slots are started with this environment
    from tests.joblib_suite import pool

    opened = pool.make().start()  # kept, because a pool that nobody holds is closed; this one when the interpreter ends
