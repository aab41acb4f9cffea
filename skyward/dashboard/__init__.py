"""The live page of a pool: what it records, how a browser sees it, and the file that `save_report` writes.

It listens to `skyward.core.events` and reads `skyward.core.status`, like any listener; the pool knows it only as a
`skyward.core.interfaces.Dashboard`. The server needs the extra ``[dashboard]``; recording and reports don't.
"""
