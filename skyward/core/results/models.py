"""What results may contain of scipy and scikit-learn: sparse matrices and estimators.

Instances of scikit-learn's classes are made without ``__init__`` and given their attributes. Functions are allowed only
where an estimator calls them later (a scorer's metric, say), from modules that contain nothing else. What compiled code
uses as positions in memory is checked: nodes of trees, and indices of sparse matrices.
"""

from __future__ import annotations

import importlib
import re
import types
from collections.abc import Callable
from typing import Any

import numpy

from skyward.core.results.rules import Mark, RefusedPickle, Rule, attributes, called, made

__all__ = ["build_reconstructed", "reconstructed", "rule"]

_SCIPY = re.compile(r"scipy\.sparse\._(bsr|coo|csc|csr|dia|dok|lil)")
_SKLEARN = re.compile(r"sklearn(\.[A-Za-z_]\w*)+")
_NOT_OF_MODELS = re.compile(
    r"sklearn\.(.*\.)?(tests|conftest|externals|datasets|callback|_build_utils|_quad_tree|_testing|parallel)(\..*)?"
)
"""Parts of scikit-learn whose classes read, write, listen or connect, or are not part of any model."""
_UTILS = re.compile(r"sklearn\.utils\._(bunch|metadata_requests|tags)")
_FUNCTIONS_OF = re.compile(
    r"sklearn\.(metrics\.(?!_plot)\w+(\._\w+)*|metrics|feature_selection(\._\w+)?|cluster\._kmeans|preprocessing\._data)"
)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class defined in Python code


def rule(module: str, name: str) -> Rule | None:
    """Return the rule for a name; None if there is none."""
    if not name.isidentifier():
        return None
    if module.startswith("scipy."):
        return _of_scipy(module, name)
    if not _SKLEARN.fullmatch(module) or _NOT_OF_MODELS.fullmatch(module):
        return None
    if module.startswith("sklearn.utils") and not _UTILS.fullmatch(module):
        return None
    found = getattr(importlib.import_module(module), name, None)
    if getattr(found, "__module__", None) != module:
        return None
    if isinstance(found, type) and found.__qualname__ == name:
        return _of_class(found)
    if name == "newObj" or name.startswith("__pyx_unpickle_"):
        return Rule(Mark(f"{module}.{name}"), _made_of(module, found), build=_build)
    if isinstance(found, types.FunctionType) and not name.startswith("__") and _FUNCTIONS_OF.fullmatch(module):
        return Rule(found)
    return None


# --- scikit-learn ---------------------------------------------------------------------------------------------------


def _of_class(kind: type) -> Rule | None:
    if hasattr(kind, "__del__") or (issubclass(kind, BaseException)):
        return None
    is_compiled = not kind.__flags__ & _HEAP_TYPE
    return Rule(kind, called(kind) if is_compiled else None, made(kind), _build, items=issubclass(kind, dict))


def _made_of(module: str, function: Any) -> Callable[..., Any]:
    """Restrict a function that makes instances of compiled classes to classes of its own module."""

    def call(kind: Any, *rest: Any) -> Any:
        if not isinstance(kind, type) or kind.__module__ != module:
            raise RefusedPickle("makes an object of another module's class")
        return function(kind, *rest)

    return call


def _build(model: Any, state: Any) -> Any:
    check = _CHECKS.get(type(model).__name__)
    if check is not None:
        check(model, state)
    return attributes(model, state)


def _check_tree(tree: Any, state: Any) -> None:
    nodes, count = state["nodes"], state["node_count"]
    if type(count) is not int or not 0 <= count <= len(nodes):
        raise RefusedPickle("contains a tree with fewer nodes than it claims")
    left, right, features = (nodes[name][:count] for name in ("left_child", "right_child", "feature"))
    _check_children(left, right, left != -1)
    if ((left == -1) != (right == -1)).any() or (features[left != -1] < 0).any() or (features >= tree.n_features).any():
        raise RefusedPickle("contains a tree that splits by features out of range")


def _check_children(left: Any, right: Any, inner: Any) -> None:
    """Check that children come after their node, so that every path ends."""
    places = numpy.arange(len(left))[inner]
    for child in (left[inner], right[inner]):
        if ((child <= places) | (child >= len(left))).any():
            raise RefusedPickle("contains a tree whose nodes are out of range")


def _check_predictor(_: Any, state: Any) -> None:
    nodes = state["nodes"]
    inner = nodes["is_leaf"] == 0
    _check_children(nodes["left"].astype(numpy.int64), nodes["right"].astype(numpy.int64), inner)
    bitsets = min(len(state["raw_left_cat_bitsets"]), len(state["binned_left_cat_bitsets"]))
    by_category = inner & (nodes["is_categorical"] != 0)
    if (nodes["feature_idx"][inner] < 0).any() or (nodes["bitset_idx"][by_category] >= bitsets).any():
        raise RefusedPickle("contains a tree that splits by features out of range")


def _check_neighbours(_: Any, state: Any) -> None:
    data, order, nodes, bounds, _leaf, levels, count, *_rest = state
    fits = numpy.ndim(data) == 2 and len(order) == len(data) and len(nodes) == count
    if not fits or bounds.shape[1:] != (
        count,
        data.shape[1],
    ):  # a ball tree has one bound for each node, a k-d tree two
        raise RefusedPickle("contains a tree of neighbours that is not as large as it claims")
    if count < 1 or not 0 < levels < 63 or count != 2**levels - 1:
        raise RefusedPickle("contains a tree of neighbours with fewer levels than it claims")
    starts, ends = nodes["idx_start"], nodes["idx_end"]
    if len(order) and ((order.min() < 0) or (order.max() >= len(data))):
        raise RefusedPickle("contains a tree of neighbours whose points are out of range")
    if ((starts < 0) | (ends > len(data)) | (starts > ends)).any():
        raise RefusedPickle("contains a tree of neighbours whose nodes are out of range")


_CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "Tree": _check_tree,
    "TreePredictor": _check_predictor,
    **dict.fromkeys(("KDTree", "KDTree32", "KDTree64", "BallTree", "BallTree32", "BallTree64"), _check_neighbours),
}


# --- scipy ----------------------------------------------------------------------------------------------------------


def _of_scipy(module: str, name: str) -> Rule | None:
    if _SCIPY.fullmatch(module):
        kind = getattr(importlib.import_module(module), name, None)
        if isinstance(kind, type) and kind.__module__ == module and re.fullmatch(r"[a-z]{3}_(matrix|array)", name):
            return Rule(kind, new=made(kind), build=_build_sparse)
    if module == "scipy.interpolate._bsplines" and name in ("BSpline", "_BSpline"):
        kind = getattr(importlib.import_module(module), name)
        return Rule(kind, new=made(kind), build=_build_spline)
    if module == "scipy.special":
        found = getattr(importlib.import_module(module), name, None)
        return Rule(found) if isinstance(found, numpy.ufunc) else None
    if module == "scipy._lib.array_api_compat.numpy._aliases" and name == "asarray":
        return Rule(Mark("asarray"))  # a spline that is rebuilt has it already
    return None


def _build_spline(spline: Any, state: Any) -> Any:
    kind = type(spline)
    if type(state) is tuple:  # scipy since 1.18: the spline itself is another object, made as below
        if type(state[0]).__name__ != "_BSpline":
            raise RefusedPickle("contains an invalid spline")
        return attributes(spline, state)
    knots, coefficients = (state.get(f"_{name}", state.get(name)) for name in ("t", "c"))
    return kind(knots, coefficients, state["k"], state["extrapolate"], state["axis"])


def _build_sparse(matrix: Any, state: Any) -> Any:
    if type(state) is not dict or not all(type(name) is str for name in state):
        raise RefusedPickle("contains a sparse matrix without parts")
    matrix.__dict__.update(state)
    if any(not isinstance(size, (int, numpy.integer)) or size < 0 for size in matrix.shape):
        raise RefusedPickle("contains a sparse matrix of an impossible shape")
    try:
        _SPARSE[matrix.format](matrix)
    except (ValueError, TypeError, IndexError) as error:
        raise RefusedPickle(f"contains a sparse matrix whose parts do not match ({error})") from None
    return matrix


def _check_compressed(matrix: Any) -> None:
    if not all(isinstance(part, numpy.ndarray) for part in (matrix.indptr, matrix.indices, matrix.data)):
        raise ValueError("not arrays")
    if matrix.indptr.dtype.kind != "i" or matrix.indices.dtype.kind != "i":
        raise ValueError("indices are not integers")
    matrix.check_format(full_check=True)


def _check_coordinates(matrix: Any) -> None:
    coords = matrix.coords if hasattr(matrix, "coords") else (matrix.row, matrix.col)
    if len(coords) != len(matrix.shape) or matrix.data.ndim != 1:
        raise ValueError("wrong number of dimensions")
    for places, size in zip(coords, matrix.shape, strict=True):
        if places.shape != matrix.data.shape or places.dtype.kind != "i":
            raise ValueError("one index is needed per number")
        if places.size and (places.min() < 0 or places.max() >= size):
            raise ValueError("index out of range")


def _check_diagonals(matrix: Any) -> None:
    if matrix.data.ndim != 2 or matrix.offsets.shape != matrix.data.shape[:1] or matrix.offsets.dtype.kind != "i":
        raise ValueError("one offset is needed per diagonal")


def _check_lists(matrix: Any) -> None:
    rows, columns = matrix.shape
    if matrix.rows.shape != (rows,) or matrix.data.shape != (rows,):
        raise ValueError("wrong number of rows")
    for places, numbers in zip(matrix.rows, matrix.data, strict=True):
        if type(places) is not list or type(numbers) is not list or len(places) != len(numbers):
            raise ValueError("a row is not a list")
        if not all(0 <= place < columns for place in places):
            raise ValueError("index out of range")


def _check_keys(matrix: Any) -> None:
    for key in (*matrix.keys(), *vars(matrix).get("_dict", ())):
        places = key if type(key) is tuple else (key,)
        if len(places) != len(matrix.shape):
            raise ValueError("wrong number of dimensions")
        if not all(0 <= place < size for place, size in zip(places, matrix.shape, strict=True)):
            raise ValueError("index out of range")


_SPARSE: dict[str, Callable[[Any], None]] = {
    **dict.fromkeys(("csr", "csc", "bsr"), _check_compressed),
    "coo": _check_coordinates,
    "dia": _check_diagonals,
    "lil": _check_lists,
    "dok": _check_keys,
}


def reconstructed(kind: Any, base: Any, state: Any) -> Any:
    """Do what ``copyreg._reconstructor`` does for a matrix that is a dict.

    Parameters
    ----------
    kind, base, state
        Its arguments, as the pickle gives them.

    Raises
    ------
    RefusedPickle
        They are not those of such a matrix.
    """
    if (
        not (isinstance(kind, type) and _SCIPY.fullmatch(kind.__module__))
        or base is not dict
        or type(state) is not dict
    ):
        raise RefusedPickle("makes an object in a way that data does not")
    matrix: Any = dict.__new__(kind)
    dict.__init__(matrix, state)
    return matrix


build_reconstructed = _build_sparse
