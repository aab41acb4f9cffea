"""joblib and scikit-learn on a pool: public names, and nothing else."""

from skyward.joblib_ext.backend import SkywardBackend
from skyward.joblib_ext.pools import JoblibPool, ScikitLearnPool, sklearn_backend

__all__ = ["JoblibPool", "ScikitLearnPool", "SkywardBackend", "sklearn_backend"]
