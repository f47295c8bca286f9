"""Serialize forests in a format that runs no code on loading, for checkpoints and between hosts.

The format is skops: a ZIP archive of arrays, and a description of the objects that consist of them. skops trusts all
types of scikit-learn and NumPy; here only the types of a forest are allowed. A tree has indices of nodes and features
that scikit-learn uses unchecked: they are checked here.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import skops.io
from sklearn import ensemble, tree

from trainbox.errors import DataError
from trainbox.sklearn.repeatable import clear_padding, rewrite

Forest: TypeAlias = (
    ensemble.RandomForestClassifier
    | ensemble.RandomForestRegressor
    | ensemble.ExtraTreesClassifier
    | ensemble.ExtraTreesRegressor
)

#: The type that skops does not trust by itself, because of the numbers in it: `check_trees` looks at them.
TRUSTED = ("sklearn.tree._tree.Tree",)
#: zlib's level: a third of the size for a quarter of a second; higher ones bring little.
COMPRESSION = 3
#: For what is written at each group and read once at most.
_QUICK = 1

FORESTS = (
    ensemble.RandomForestClassifier,
    ensemble.RandomForestRegressor,
    ensemble.ExtraTreesClassifier,
    ensemble.ExtraTreesRegressor,
)
_TREES = (
    tree.DecisionTreeClassifier,
    tree.DecisionTreeRegressor,
    tree.ExtraTreeClassifier,
    tree.ExtraTreeRegressor,
)
#: How skops may make what: its own name of the way, and the module and name of the type.
_ALLOWED = frozenset(
    {
        *(("ObjectNode", kind.__module__, kind.__name__) for kind in (*FORESTS, *_TREES)),
        ("TreeNode", "sklearn.tree._tree", "Tree"),
        ("DictNode", "builtins", "dict"),
        ("ListNode", "builtins", "list"),
        ("TupleNode", "builtins", "tuple"),
        *((way, "builtins", name) for way in ("JsonNode", "TypeNode") for name in ("bool", "float", "int", "str")),
        ("JsonNode", "builtins", "NoneType"),
        *(("NdArrayNode", "numpy", name) for name in ("ndarray", "int32", "int64", "float32", "float64")),
    }
)
#: What damaged bytes make skops, NumPy and scikit-learn raise.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,  # skops' own errors are such
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def pack(forest: Forest) -> bytes:
    """Serialize a fitted forest without its training rows; equal forests give equal bytes."""
    return rewrite(skops.io.dumps(forest), level=_QUICK)


def unpack(content: bytes, kind: type[Forest], *, features: int, source: str) -> Forest:
    """Deserialize and check a forest that `pack` serialized.

    Args:
        content: The bytes, from whomever.
        kind: The class that the forest must have.
        features: How many features its trees know.
        source: Where the bytes are from, for the message.

    Raises:
        DataError: They hold something else, or a tree that leads nowhere.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            description = json.loads(archive.read("schema.json"))
        strange = sorted({" ".join(node) for node in _walk(description) if node not in _ALLOWED})
        if strange:
            raise _refuse(source, f"it contains types that do not belong to a forest: {', '.join(strange[:3])}")
        forest = skops.io.loads(content, trusted=list(TRUSTED))
        if type(forest) is not kind:
            raise _refuse(source, f"it holds a {type(forest).__name__}, expected a {kind.__name__}")
        check_trees(forest, features=features, source=source)
        clear_padding(forest)  # of one that an older trainbox has packed
    except _DAMAGED as error:
        raise _refuse(source, f"{type(error).__name__}: {error}") from error
    return forest


def _walk(node: object) -> Iterator[tuple[str, str, str]]:
    """Every object that a description makes: how, and which type."""
    rest = [node]
    while rest:
        match rest.pop():
            case dict() as entry:
                if "__loader__" in entry or "__class__" in entry:
                    yield str(entry.get("__loader__")), str(entry.get("__module__")), str(entry.get("__class__"))
                rest += entry.values()
            case list() as entries:
                rest += entries


def check_trees(forest: Forest, *, features: int, source: str) -> None:
    """Check that every node's children are later nodes of the same tree, and that its feature exists.

    Raises:
        DataError: One does not; scikit-learn would read whatever lies there, or never end.
    """
    for number, grown in enumerate(forest.estimators_):
        nodes = grown.tree_
        # First, for the arrays below are views of as many nodes as it claims to have.
        sound = 0 < nodes.node_count == nodes.capacity and nodes.n_features == grown.n_features_in_ == features
        sound = sound and nodes.n_outputs == grown.n_outputs_ == 1
        if not sound or not _leads_on(nodes):
            raise _refuse(source, f"tree {number} has a child or feature index out of range")


def _leads_on(nodes: Any) -> bool:  # noqa: ANN401 - scikit-learn's Tree has no types
    left, right, feature = nodes.children_left, nodes.children_right, nodes.feature
    inner = left != -1
    places = np.flatnonzero(inner)
    for children in (left[inner], right[inner]):
        # A child has a higher number than its parent: so no path comes back to where it was.
        if not ((children > places) & (children < nodes.node_count)).all():
            return False
    return bool(((feature[inner] >= 0) & (feature[inner] < nodes.n_features)).all())


def _refuse(source: str, why: str) -> DataError:
    return DataError(f"{source} cannot be used: {why}", hint="the file is damaged, or was not written by trainbox")
