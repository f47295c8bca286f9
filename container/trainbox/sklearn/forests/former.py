"""A former forest from the channel `model`: training adds trees to it, as scikit-learn's `warm_start` does."""

import hashlib

import msgspec
import numpy as np

from trainbox.comm import Communicator
from trainbox.errors import DataError, HyperparameterError
from trainbox.former import MODEL_CHANNEL, check_columns, find_file, former_model
from trainbox.log_lines import emit
from trainbox.sklearn.data import EstimatorData
from trainbox.sklearn.forests.packing import unpack
from trainbox.sklearn.forests.parts import ForestPart, forest_class
from trainbox.sklearn.params import EstimatorParams
from trainbox.tabular.texts import by_name

_FILE = "model.skops"
_SOURCE = f"{_FILE} of the channel {MODEL_CHANNEL}"


class FormerForest(msgspec.Struct, frozen=True, eq=False):
    """The forest that training starts from; without trees if there is none."""

    trees: int = 0
    digest: str = ""
    #: On the first host alone: all of its trees.
    parts: tuple[ForestPart, ...] = ()

    @property
    def sentence(self) -> str:
        """Its description in the identity of a checkpoint."""
        return f"{self.trees} trees, digest {self.digest}"


class _Summary(msgspec.Struct, frozen=True):
    trees: int
    digest: str


def read_former(params: EstimatorParams, data: EstimatorData, communicator: Communicator) -> FormerForest:
    """Read the former forest on the first host, and send its number of trees to the others.

    Raises:
        DataError: The channel holds no forest, or one of other rows or another kind.
        HyperparameterError: It has as many trees as are asked for, or something has no meaning with it.
    """
    directory = former_model()
    members = communicator.gather(directory is not None, bool)
    if True not in members:
        return FormerForest()
    if not members[0]:
        raise DataError(
            f"channel {MODEL_CHANNEL}: the first host, {communicator.members.names[0]}, did not get it",
            hint="give it to all hosts",
        )
    parts: tuple[ForestPart, ...] = ()
    summary = _Summary(0, "")
    if communicator.rank == 0 and directory is not None:
        content = find_file(directory, _FILE).read_bytes()
        columns = data.columns or data.features
        check_columns(directory, columns, by_name(data.coding, columns), data.coding.labels)
        parts = (_read(content, params, data),)
        summary = _Summary(parts[0].last, hashlib.sha256(content).hexdigest()[:16])
    summary = msgspec.json.decode(communicator.share(msgspec.json.encode(summary)), type=_Summary)
    _check_params(params, summary.trees)
    if communicator.rank == 0:
        emit(
            f"channel {MODEL_CHANNEL}: {summary.trees:,} trees; {params.n_estimators - summary.trees:,} more are grown"
        )
    return FormerForest(summary.trees, summary.digest, parts)


def refuse_former(what: str) -> None:
    """Reject the channel `model` where it has no effect.

    Args:
        what: The hyperparameter that says so.

    Raises:
        HyperparameterError: The job has the channel.
    """
    if former_model() is not None:
        raise HyperparameterError(
            f"{what} cannot start from the model of the channel {MODEL_CHANNEL}",
            hint="leave the channel out; scikit-learn's own forests grow more trees",
        )


def _read(content: bytes, params: EstimatorParams, data: EstimatorData) -> ForestPart:
    forest = unpack(content, forest_class(params), features=len(data.features), source=_SOURCE)
    classes = tuple(np.asarray(getattr(forest, "classes_", ())).tolist())
    if classes != data.classes:
        raise DataError(
            f"{_SOURCE} knows the classes {_some(classes)}; channel train has {_some(data.classes)}",
            hint="a forest grows more trees for the same classes",
        )
    width = max(len(classes), 1)
    if any(tree.tree_.value.shape[1:] != (1, width) for tree in forest.estimators_):
        raise DataError(f"{_SOURCE} cannot be used: a tree has not {width} values in each node")
    return ForestPart(0, len(forest.estimators_), forest, content)


def _some(classes: tuple[object, ...]) -> str:
    most = 10
    return ", ".join(map(str, classes[:most])) + ("…" if len(classes) > most else "")


def _check_params(params: EstimatorParams, trees: int) -> None:
    if trees >= params.n_estimators:
        raise HyperparameterError(
            f"n-estimators is {params.n_estimators}, and the model of the channel {MODEL_CHANNEL} has {trees} trees",
            hint="n-estimators counts all trees, as with scikit-learn's warm_start: ask for more",
        )
    if params.oob_score:
        raise HyperparameterError(
            f"oob_score has no meaning with the channel {MODEL_CHANNEL}: the rows that its trees have seen are unknown",
            hint="leave it out, and give a channel 'validation'",
        )
