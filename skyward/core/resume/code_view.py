"""Which state of the user's own code a call is about: what its identity says must be what nodes run.

Identities are computed from files that are read here, and nodes get a version that `LocalCode` has made of them, which
reads them at another moment. Both mean the same if the version was made after the latest change of the files, and none
has changed since. A ``Parallel`` call runs with the version from its beginning, so it has a view of its own, which
later edits do not affect.
"""

from __future__ import annotations

import time

from skyward.core.code.local_code import CodeVersion, LocalCode
from skyward.core.resume.origins import ModuleOrigins

__all__ = ["CodeView"]

_TICK = 30_000_000  # ns; a file that is changed twice within one tick of the clock may look the same


class CodeView:
    """One state of the code. For one thread at a time, except where noted.

    Attributes
    ----------
    origins
        The digests of its modules.
    version
        The version that nodes get; None if there is no local code.
    """

    def __init__(self) -> None:
        self.origins = ModuleOrigins()
        self.version: CodeVersion | None = None
        self._looked = 0  # ns since the epoch, when the version was made or found to be the latest

    def __repr__(self) -> str:
        return f"<CodeView of {self.version}, {self.origins}>"

    def is_certain(self) -> bool:
        """Whether all files with digests are in the version as they were when digested."""
        return self.origins.newest < self._looked - _TICK

    def look(self, code: LocalCode | None) -> None:
        """Have the version made again; digests may differ afterwards. Waits up to one tick.

        Raises
        ------
        ConfigError
            Something can't be sent to nodes, or is too large.
        """
        began = time.time_ns()
        self.version = None if code is None else code.now(look=True)
        if self.origins.has_changed():
            self.origins.refresh(now=True)
        elif self.origins.newest < began - _TICK:
            self._looked = began
        else:
            time.sleep(_TICK / 1e9)

    def forget(self) -> None:
        """Have `is_certain` ask for another look."""
        self._looked = 0

    def copy(self) -> CodeView:
        """Return this state, which does not change with the files."""
        other = CodeView()
        other.origins, other.version, other._looked = self.origins.copy(), self.version, self._looked
        return other
