"""Real pools under random load, with an oracle: users.py submits, faults.py breaks things, rounds.py joins them.

`make soak` runs it on this machine and on the lab's hosts, `make chaos` on hosts with faults only.
What must hold:

* each future settles, once, with its own result or its own error; a cancelled one may have been too late;
* nothing waits for longer than `SETTLE` seconds after the last fault has been undone;
* an error anywhere else, in a callback's thread or in Python's log, is one too;
* when the pool is closed, no process, thread, file, socket or mount of ours is left, here or on any host;
* the driver's memory does not grow from round to round.
"""
