"""The live page of a pool: what it records, how a browser sees it, and the file that `save_report` writes.

It listens to `skyward.core.events` and reads `skyward.core.status`, like anybody's listener; the pool knows of it only
what `skyward.core.interfaces.Dashboard` says. The server needs the extra ``[dashboard]``; recording and reports don't.
"""
