"""As in tests/joblib_ext: a module may keep a pool."""

from tests.joblib_ext.conftest import _nothing_left_behind

__all__ = ["_nothing_left_behind"]
