"""Whether the categories of splits, and those of the data, lie within the arrays that hold them."""

import numpy as np

from trainbox.xgboost.model_check.sections import Section

#: XGBoost has categories as numbers of 32-bit floats, which are exact up to here.
_MOST_CATEGORIES = 2**24
#: A split keeps a bit for each category up to its largest: a few bytes of a model could ask for any memory.
LARGEST_SPLITS_BYTES = 1024**3
_BITS = 32
_TYPES = range(7, 17)  # `CatIndexType` in XGBoost's src/data/cat_container.cc


def check_categories(number: int, tree: Section, nodes: int, *, is_optional: bool) -> None:
    """Check the categorical splits of one tree.

    Args:
        number: Of the tree, for messages.
        tree: The tree.
        nodes: How many it has.
        is_optional: Whether it may say nothing of the kinds of its splits, as before XGBoost 1.3.

    Raises:
        ValueError: A split has no categories, or some that are elsewhere.
    """
    if is_optional and not tree.has("split_type"):
        return
    kinds = tree.integers("split_type")
    if len(kinds) != nodes or (nodes and int(kinds.max()) > 1) or int(kinds.min(initial=0)) < 0:
        raise ValueError(f"tree {number} has {nodes:,} nodes; split_type should have a 0 or a 1 for each")
    names = ("categories_nodes", "categories_segments", "categories_sizes", "categories")
    places, starts, sizes, categories = (tree.integers(name) for name in names)
    if not np.array_equal(places, np.flatnonzero(kinds)):
        raise ValueError(f"categories_nodes of tree {number} are not the nodes that split_type marks")
    if not len(places):
        return
    widths = sizes.astype(np.int64)
    ends = np.cumsum(widths)
    is_sound = len(starts) == len(sizes) == len(places) and widths.min() > 0 and ends[-1] == len(categories)
    if not is_sound or not np.array_equal(starts, ends - widths):
        raise ValueError(f"the categories of tree {number} do not lie one after the other in its {len(categories):,}")
    if not 0 <= categories.min() <= categories.max() < _MOST_CATEGORIES:
        raise ValueError(f"tree {number} splits by a category that is not from 0 to {_MOST_CATEGORIES - 1:,}")


def bytes_of_splits(tree: Section) -> int:
    """Return how much memory the categorical splits of a checked tree take."""
    if not tree.has("categories_nodes") or not tree.length("categories_nodes"):
        return 0
    largest = np.maximum.reduceat(tree.integers("categories"), tree.integers("categories_segments").astype(np.int64))
    return int((largest.astype(np.int64) // _BITS + 1).sum()) * (_BITS // 8)


def check_columns(cats: Section, features: int) -> None:
    """Check the categories that the data had: names or numbers for each feature.

    Raises:
        ValueError: They do not fit each other.
    """
    counts = []
    for number, value in enumerate(cats.list_of("enc")):
        column = Section(value, f"the categories of feature {number}")
        counts.append(_count_names(column) if column.has("offsets") else _count_numbers(column))
    segments = cats.integers("feature_segments").astype(np.int64)
    if len(counts) not in (0, features):
        raise ValueError(f"the model has categories for {len(counts):,} features, and {features:,} features")
    expected = np.cumsum([0, *counts])
    if not np.array_equal(segments, expected) and (counts or segments.any()):
        raise ValueError("feature_segments of the categories are not where those of each feature begin")
    order = cats.integers("sorted_idx")
    largest = max(counts, default=0)
    if len(order) not in (0, expected[-1]) or (len(order) and not 0 <= order.min() <= order.max() < largest):
        raise ValueError("sorted_idx of the categories has a number that no category has")


def _count_names(column: Section) -> int:
    offsets = column.integers("offsets").astype(np.int64)
    if not len(offsets):
        return 0
    if offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] > column.length("values"):
        raise ValueError(f"{column.where}: an offset is not within its values")
    return len(offsets) - 1


def _count_numbers(column: Section) -> int:
    if column.value("type") not in _TYPES:
        raise ValueError(f"{column.where} are of type {column.value('type')!r}, which XGBoost does not know")
    return column.length("values")
