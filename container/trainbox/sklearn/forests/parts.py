"""Parts of a forest, each a range of trees: read, gathered from all hosts, and assembled."""

import copy
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from sklearn import ensemble

from trainbox.comm import Communicator
from trainbox.errors import DataError
from trainbox.sklearn.data import EstimatorData
from trainbox.sklearn.forests.packing import Forest, unpack
from trainbox.sklearn.params import EstimatorParams, constructor_arguments
from trainbox.sklearn.repeatable import intern_texts

_CLASSES: dict[tuple[str, str], type[Forest]] = {
    ("classification", "forest"): ensemble.RandomForestClassifier,
    ("classification", "extra_trees"): ensemble.ExtraTreesClassifier,
    ("regression", "forest"): ensemble.RandomForestRegressor,
    ("regression", "extra_trees"): ensemble.ExtraTreesRegressor,
}
#: scikit-learn draws the seeds of trees below this.
_END_OF_SEEDS = np.iinfo(np.int32).max


class ForestPart(msgspec.Struct, frozen=True, eq=False):
    """Some trees of a forest, neighbours by their numbers."""

    #: The numbers of the first tree, and of the one behind the last.
    first: int
    last: int
    #: A forest of these trees alone, and the same as bytes.
    forest: Forest
    content: bytes

    @property
    def trees(self) -> list[Any]:
        """The trees, in their order."""
        grown: list[Any] = self.forest.estimators_
        return grown


def forest_class(params: EstimatorParams) -> type[Forest]:
    """Which of scikit-learn's forests it is."""
    return _CLASSES[params.task, params.algorithm]


def state_at(seed: int, number: int) -> np.random.RandomState:
    """The random state from which the seed of tree `number` is drawn next."""
    state = np.random.RandomState(seed)  # of an older kind, but what scikit-learn takes
    state.randint(_END_OF_SEEDS, size=number)
    return state


def join_forests(forests: Sequence[Forest]) -> Forest:
    """One forest of the trees of all, in this order."""
    forest = copy.copy(forests[0])
    forest.estimators_ = [tree for one in forests for tree in one.estimators_]
    return forest.set_params(n_estimators=len(forest.estimators_))


def assemble_forest(parts: Sequence[ForestPart], params: EstimatorParams, former: Sequence[ForestPart] = ()) -> Forest:
    """The forest of all trees of these parts, behind those of a former one, as one fit would have left it."""
    forest = join_forests([part.forest for part in parts]).set_params(**constructor_arguments(params))
    intern_texts(forest)
    for tree in forest.estimators_:
        tree.set_params(**{name: getattr(forest, name) for name in forest.estimator_params if name != "random_state"})
        intern_texts(tree)
    intern_texts(forest.estimator_)
    for tree in (before := [tree for part in former for tree in part.trees]):
        intern_texts(tree)
    forest.estimators_ = [*before, *forest.estimators_]
    return forest.set_params(n_estimators=len(forest.estimators_))


def read_part(
    content: bytes, first: int, last: int, params: EstimatorParams, *, features: int, source: str
) -> ForestPart:
    """Trees from bytes, where they are those with these numbers.

    Raises:
        DataError: They are not.
    """
    forest = unpack(content, forest_class(params), features=features, source=source)
    seeds = state_at(params.seed, first).randint(_END_OF_SEEDS, size=last - first).tolist()
    found = [tree.random_state for tree in forest.estimators_]
    if found != seeds:
        raise DataError(f"{source} cannot be used: its trees are not those from {first} to {last - 1}")
    return ForestPart(first, last, forest, content)


def gather_parts(
    communicator: Communicator, parts: Sequence[ForestPart], params: EstimatorParams, data: EstimatorData
) -> list[ForestPart]:
    """Bring the trees of all members to the first, one part of each at a time; the others get nothing.

    Returns:
        On the first all parts, its own in front, by the numbers of their trees.

    Raises:
        PeerError: A member is lost.
        DataError: What a member sends is no part of this forest.
    """
    numbers = communicator.gather([(part.first, part.last) for part in parts], list[tuple[int, int]])
    found = list(parts)
    for place in range(max(map(len, numbers[1:]), default=0)):
        is_mine = communicator.rank > 0 and place < len(parts)
        given = communicator.send_to_first(parts[place].content if is_mine else b"")
        for rank, content in enumerate(given or ()):
            if content:
                first, last = numbers[rank][place]
                name = f"what {communicator.members.names[rank]} has grown"
                found.append(read_part(content, first, last, params, features=len(data.features), source=name))
    return sorted(found, key=lambda part: part.first) if communicator.rank == 0 else []
