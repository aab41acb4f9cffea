"""Opens a pool in the scripts that joblib's tests start, since these name our backend and open none.

Python imports this module by its name when it starts, where its folder is in PYTHONPATH.
"""

import os

if os.environ.pop("SKYWARD_SUITE_CHILD", None):  # taken away first: agents and slots are started with this environment
    from tests.joblib_suite import pool

    pool.make().start()  # closed when the interpreter ends
