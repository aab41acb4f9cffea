"""Opens a pool in the scripts that joblib's tests start, since these name our backend and open none.

Python imports this module by its name when it starts, where its folder is in PYTHONPATH.
"""

import os

if os.environ.pop("FOREIGN_CHILD", None):  # taken away first: agents and slots are started with this environment
    from tests.foreign import pool

    opened = pool.make().start()  # kept, because a pool that nobody holds is closed; this one when the interpreter ends
