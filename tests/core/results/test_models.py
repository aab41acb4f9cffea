"""Fitted estimators and sparse matrices come back; nodes and indices that lead out of memory are refused."""

from __future__ import annotations

import pickle

import pytest

from skyward.core.payload import pickling
from skyward.core.results.names import Allowed, Trusted
from skyward.core.results.rules import RefusedPickle
from skyward.core.results.unpickler import loads
from tests.core.results.hostile import Reduced, assemble, call, changed, name, read, text
from tests.lazily import Lazy

pytestmark = pytest.mark.slow  # it imports scikit-learn

np = pytest.importorskip("numpy")
sparse, sk = Lazy("scipy.sparse"), Lazy("tests.estimators")

RNG = np.random.RandomState(0)
X = np.abs(RNG.rand(60, 4))
y = (X[:, 0] + X[:, 1] > 1).astype(int)

ESTIMATORS = {
    "LogisticRegression": lambda: sk.LogisticRegression(C=0.5),
    "Ridge": lambda: sk.Ridge(alpha=0.5),
    "SGDClassifier": lambda: sk.SGDClassifier(random_state=0),
    "SVC": lambda: sk.SVC(probability=False),
    "KMeans": lambda: sk.KMeans(2, n_init=1, random_state=0),
    "PCA": lambda: sk.PCA(2),
    "DecisionTreeClassifier": lambda: sk.DecisionTreeClassifier(max_leaf_nodes=5, random_state=0),
    "RandomForestClassifier": lambda: sk.RandomForestClassifier(5, random_state=RNG),
    "GradientBoostingClassifier": lambda: sk.GradientBoostingClassifier(n_estimators=3),
    "HistGradientBoostingClassifier": lambda: sk.HistGradientBoostingClassifier(max_iter=3, categorical_features=None),
    "KNeighborsClassifier kd_tree": lambda: sk.KNeighborsClassifier(algorithm="kd_tree", leaf_size=5),
    "KNeighborsClassifier ball_tree": lambda: sk.KNeighborsClassifier(algorithm="ball_tree", leaf_size=5),
    "MLPClassifier": lambda: sk.MLPClassifier((3,), max_iter=5),
    "GaussianProcessClassifier": lambda: sk.GaussianProcessClassifier(random_state=0),
    "CalibratedClassifierCV": lambda: sk.CalibratedClassifierCV(sk.SVC(), method="isotonic", cv=2),
    "Pipeline": lambda: sk.make_pipeline(
        sk.StandardScaler(), sk.SplineTransformer(), sk.SelectKBest(sk.f_classif, k=2), sk.LogisticRegression()
    ),
    "ColumnTransformer": lambda: sk.ColumnTransformer(
        [("a", sk.FunctionTransformer(np.log1p), [0, 1]), ("b", "passthrough", slice(2, 4))]
    ),
    "GridSearchCV": lambda: sk.GridSearchCV(sk.LogisticRegression(), {"C": [0.1, 1]}, cv=2, scoring="roc_auc"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_fitted_estimators_come_back(make):
    estimator = make().fit(X, y)
    head, buffers = pickling.dumps(estimator, large=None)
    back = loads(head, [bytearray(buffer) for buffer in buffers], Allowed(Trusted()))
    method = "predict" if hasattr(estimator, "predict") else "transform"
    np.testing.assert_array_equal(getattr(back, method)(X), getattr(estimator, method)(X))


@pytest.mark.slow
def test_a_vectorizer_comes_back():
    vectorizer = sk.TfidfVectorizer().fit(["a few words", "a few more"])
    back = read(pickle.dumps(vectorizer, protocol=5))
    assert (back.transform(["more words"]) != vectorizer.transform(["more words"])).nnz == 0


def test_an_exception_of_scikit_learn_comes_back():
    assert isinstance(read(pickle.dumps(sk.NotFittedError("x"), protocol=5)), sk.NotFittedError)


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
@pytest.mark.parametrize("kind", ["matrix", "array"])
def test_sparse_matrices_come_back(form, kind):
    matrix = getattr(sparse, f"{form}_{kind}")(np.diag([1.0, 0, 3]))
    back = read(pickle.dumps(matrix, protocol=5))
    assert type(back) is type(matrix)
    np.testing.assert_array_equal(back.toarray(), matrix.toarray())


# --- lies ---


@pytest.mark.parametrize(
    ("form", "part", "value"),
    [
        ("csr", "indices", np.array([0, 10**6, 2], "i4")),
        ("csr", "indices", np.array([0, -1, 2], "i4")),
        ("csc", "indptr", np.array([0, 1, 2, 1000], "i4")),
        ("csr", "indptr", [0, 1, 2, 3]),
        ("csr", "data", np.zeros(1)),
        ("csr", "_shape", (3, -3)),
        ("bsr", "indices", np.array([0, 7, 2], "i4")),
        ("coo", "coords", (np.array([0, 1, 99], "i4"), np.array([0, 1, 2], "i4"))),
        ("dia", "offsets", np.array([0, 1], "i4")),
        ("lil", "rows", np.array([[0], [1], [99], None], object)[:3]),
        ("dok", "_shape", (1, 1)),
    ],
)
def test_sparse_matrices_whose_places_lie_outside(form, part, value):
    matrix = getattr(sparse, f"{form}_array")(np.eye(3))
    if part not in vars(matrix):
        pytest.skip(f"this scipy's {form} has no {part}")
    with pytest.raises(RefusedPickle):
        read(changed(matrix, **{part: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("left_child", 10**6), ("right_child", 0), ("left_child", -1), ("feature", 99), ("feature", -3)],
)
def test_trees_whose_nodes_lie_outside(field, value):
    tree = sk.DecisionTreeClassifier(max_depth=2, random_state=0).fit(X, y).tree_
    made, args, state = tree.__reduce__()
    nodes = state["nodes"].copy()
    nodes[field][0] = value
    with pytest.raises(RefusedPickle):
        read(pickle.dumps(Reduced(made, args, {**state, "nodes": nodes}), protocol=5))
    with pytest.raises(RefusedPickle):
        read(pickle.dumps(Reduced(made, args, {**state, "node_count": 10**6}), protocol=5))


@pytest.mark.parametrize(("field", "value"), [("left", 10**6), ("right", 0)])
def test_histogram_trees_whose_nodes_lie_outside(field, value):
    (predictor,) = sk.HistGradientBoostingClassifier(max_iter=1).fit(X, y)._predictors[0]
    nodes = predictor.nodes.copy()
    nodes[field][0] = value
    with pytest.raises(RefusedPickle):
        read(changed(predictor, nodes=nodes))


@pytest.mark.parametrize(("part", "change"), [(1, lambda a: a + 100), (2, lambda a: a[:1]), (3, lambda a: a[:, :1])])
def test_trees_of_neighbours_that_lie_outside(part, change):
    tree = sk.KNeighborsClassifier(algorithm="kd_tree", leaf_size=5).fit(X, y)._tree
    made, args, state = tree.__reduce__()
    state = list(state)
    state[part] = np.ascontiguousarray(change(state[part]))
    with pytest.raises(RefusedPickle):
        read(pickle.dumps(Reduced(made, args, tuple(state)), protocol=5))


def test_a_maker_makes_only_what_is_its_own():
    maker = name("sklearn.neighbors._kd_tree", "newObj")
    with pytest.raises(RefusedPickle):
        read(assemble(maker, b"(", name("sklearn.tree._tree", "Tree"), b"tR"))


def test_functions_are_values_only():
    assert read(pickle.dumps(sk.f_classif, protocol=5)) is sk.f_classif
    with pytest.raises(RefusedPickle):
        read(assemble(call("sklearn.feature_selection._univariate_selection", "f_classif", text("x"), text("y"))))
    for module, function in (("sklearn.tree._export", "export_graphviz"), ("sklearn.datasets._base", "load_files")):
        with pytest.raises(RefusedPickle):
            read(assemble(name(module, function)))
