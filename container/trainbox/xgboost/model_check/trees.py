"""Whether the trees of a model are trees: XGBoost follows children, parents and features without looking at them.

The nodes of all trees are looked at together, as one array for each of their fields: a thousand trees take as many
steps as one.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from trainbox.xgboost.model_check.categories import check_categories
from trainbox.xgboost.model_check.sections import Section

Int32s = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]

#: XGBoost goes down by calling itself, on a stack of 2 to 8 MiB.
DEEPEST_TREE = 10_000
_MOST_NODES = 2**31 - 2
_NONE = -1
#: What a root has for a parent: XGBoost keeps whether a node is a left child in the highest bit.
_NO_PARENT = 2**31 - 1
#: What a node that was pruned away has for a feature.
_DELETED = 2**31 - 1
_FIELDS = ("left_children", "right_children", "parents", "split_indices", "default_left")
_STATISTICS = ("loss_changes", "sum_hessian", "split_conditions")


class Shape(msgspec.Struct, frozen=True):
    """What the trees of a model have in common."""

    features: int
    #: Classes, targets or quantiles: how many numbers a prediction has.
    outputs: int


class _Forest(msgspec.Struct, frozen=True, eq=False):
    """The nodes of several trees, one after the other: (n,) each. Children and parents are numbered within a tree."""

    left: Int32s
    right: Int32s
    parent: Int32s
    split: Int32s
    default_left: Int32s
    #: The number of the node in its tree.
    place: Int32s
    #: How many nodes its tree has.
    count: Int32s
    #: Where its tree begins.
    base: Places
    #: Where each tree begins: (trees,).
    starts: Places
    #: The number of each tree in the model: (trees,).
    numbers: Places


def check_trees(trees: Sequence[Section], shape: Shape) -> None:
    """Check that every tree is one: each node is reached once, by features and with arrays that there are.

    Raises:
        ValueError: One is not; says which tree, which node and which of its numbers.
    """
    vectors = [_check_arrays(number, tree, shape) for number, tree in enumerate(trees)]
    for has_vectors in (False, True):
        numbers = [number for number, vector in enumerate(vectors) if vector is has_vectors]
        if numbers:
            _check_forest(_join(trees, numbers), trees, shape, has_vectors=has_vectors)


def _check_arrays(number: int, tree: Section, shape: Shape) -> bool:
    """Check the lengths of the arrays of one tree; whether its leaves are vectors."""
    if tree.value("id") != number:  # XGBoost 3.2 writes the tree there, and follows the places that stay empty
        raise ValueError(f"tree {number} has the id {tree.value('id')!r}")
    param = tree.section("tree_param")
    nodes = param.number("num_nodes", _MOST_NODES, lowest=1)
    features = param.number("num_feature", _MOST_NODES)
    if features != shape.features:
        raise ValueError(f"tree {number} is for {features:,} features, the model for {shape.features:,}")
    size = param.number("size_leaf_vector", _MOST_NODES)
    has_vectors = size > 1
    if has_vectors and size != shape.outputs:
        raise ValueError(f"the leaves of tree {number} have {size:,} values, the model has {shape.outputs:,} outputs")
    for name in (*_FIELDS, *_STATISTICS, *(() if has_vectors else ("base_weights",))):
        if (length := tree.length(name)) != nodes:
            raise ValueError(f"tree {number} has {nodes:,} nodes, but {length:,} {name}")
    if has_vectors:
        weights = tree.length("base_weights")
        if not weights or weights % nodes or weights // nodes > size:
            raise ValueError(f"tree {number} has {weights:,} base_weights for {nodes:,} nodes of {size:,} values")
    check_categories(number, tree, nodes, is_optional=not has_vectors)
    return has_vectors


def _join(trees: Sequence[Section], numbers: Sequence[int]) -> _Forest:
    counts = np.array([trees[number].length("parents") for number in numbers])
    starts = np.cumsum(counts) - counts
    base = np.repeat(starts, counts)
    left, right, parent, split, default_left = (
        np.concatenate([trees[number].integers(name) for number in numbers], dtype=np.int32, casting="same_kind")
        if name != "default_left"
        else np.concatenate([trees[number].integers(name).astype(np.int32) for number in numbers])
        for name in _FIELDS
    )
    return _Forest(
        left=left,
        right=right,
        parent=parent,
        split=split,
        default_left=default_left,
        place=(np.arange(len(base)) - base).astype(np.int32),
        count=np.repeat(counts, counts).astype(np.int32),
        base=base,
        starts=starts,
        numbers=np.array(numbers),
    )


def _check_forest(forest: _Forest, trees: Sequence[Section], shape: Shape, *, has_vectors: bool) -> None:
    inner = forest.left != _NONE
    # The right child is the one after the left: XGBoost finds it so, and by its number only where a value is missing.
    _refuse_any(forest, inner & ((forest.left <= forest.place) | (forest.left >= forest.count - 1)), "left_children")
    _refuse_any(forest, inner & (forest.right != forest.left + 1), "right_children")
    deleted = (forest.split == _DELETED) & (forest.default_left == 1) & ~inner & (forest.place > 0) & (not has_vectors)
    _refuse_any(forest, ~deleted & ((forest.split < 0) | (forest.split >= shape.features)), "split_indices")
    _check_parents(forest, inner, deleted)
    _check_deleted(forest, trees, deleted)
    _check_depth(forest, inner)
    if has_vectors:
        _check_leaves(forest, trees, shape, inner)


def _check_parents(forest: _Forest, inner: npt.NDArray[np.bool_], deleted: npt.NDArray[np.bool_]) -> None:
    """Every node but a root is a child of its parent, so no child has two; every child of a node is there."""
    root = forest.place == 0
    _refuse_any(forest, root & (forest.parent != _NONE) & (forest.parent != _NO_PARENT), "parents")
    _refuse_any(forest, ~root & ((forest.parent < 0) | (forest.parent >= forest.count)), "parents")
    above = forest.base + np.where(root, 0, forest.parent)
    first = forest.left[above]
    is_child = inner[above] & ((forest.place == first) | (forest.place == first + 1)) & ~root
    _refuse_any(forest, ~root & ~deleted & ~is_child, "parents")
    if np.count_nonzero(is_child & ~deleted) != 2 * np.count_nonzero(inner):
        children = np.add.reduceat(is_child & ~deleted, forest.starts, dtype=np.int64)
        slots = 2 * np.add.reduceat(inner, forest.starts, dtype=np.int64)
        tree = int(forest.numbers[np.flatnonzero(children != slots)[0]])
        raise ValueError(f"tree {tree} has a node whose child was deleted")


def _check_deleted(forest: _Forest, trees: Sequence[Section], deleted: npt.NDArray[np.bool_]) -> None:
    counts = np.add.reduceat(deleted, forest.starts, dtype=np.int64)
    for number, count in zip(forest.numbers, counts, strict=True):
        said = trees[number].section("tree_param").number("num_deleted", _MOST_NODES, default=0)
        if said != count:
            raise ValueError(f"tree {number} has {count:,} deleted nodes, but says num_deleted={said:,}")


def _check_depth(forest: _Forest, inner: npt.NDArray[np.bool_]) -> None:
    level = forest.starts
    for _ in range(DEEPEST_TREE):
        level = level[inner[level]]
        if not len(level):
            return
        first = forest.base[level] + forest.left[level]
        level = np.concatenate([first, first + 1])
    tree = _tree_of(forest, int(level[0]))
    raise ValueError(f"tree {tree} is deeper than {DEEPEST_TREE:,}, more than XGBoost can follow")


def _check_leaves(forest: _Forest, trees: Sequence[Section], shape: Shape, inner: npt.NDArray[np.bool_]) -> None:
    """What a leaf has for its right child is the row of its values."""
    leaves = np.add.reduceat(~inner, forest.starts, dtype=np.int64)
    for number, count in zip(forest.numbers, leaves, strict=True):
        if (length := trees[number].length("leaf_weights")) != count * shape.outputs:
            raise ValueError(
                f"tree {number} has {count:,} leaves of {shape.outputs:,} values, but {length:,} leaf_weights"
            )
    rows = np.repeat(leaves, np.diff([*forest.starts, len(inner)]))
    _refuse_any(forest, ~inner & ((forest.right < 0) | (forest.right >= rows)), "right_children")


def _refuse_any(forest: _Forest, bad: npt.NDArray[np.bool_], name: str) -> None:
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        values: dict[str, Any] = dict(
            zip(_FIELDS, (forest.left, forest.right, forest.parent, forest.split, forest.default_left), strict=True)
        )
        tree, node = _tree_of(forest, at), forest.place[at]
        raise ValueError(
            f"tree {tree}, node {node} of {forest.count[at]:,}: {values[name][at]} in {name} is out of range or leads"
            " elsewhere than a tree does"
        )


def _tree_of(forest: _Forest, at: int) -> int:
    return int(forest.numbers[np.searchsorted(forest.starts, at, side="right") - 1])
