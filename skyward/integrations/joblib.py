"""Public names of the joblib and scikit-learn integrations."""

from skyward.joblib_ext.backend import SkywardBackend
from skyward.joblib_ext.pools import JoblibPool, ScikitLearnPool, sklearn_backend

__all__ = ["JoblibPool", "ScikitLearnPool", "SkywardBackend", "sklearn_backend"]
