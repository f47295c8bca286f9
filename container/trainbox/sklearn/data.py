"""Read the channels on all hosts, check that they match, and gather sharded rows."""

import os
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import scipy.sparse
import sklearn

import trainbox
from trainbox.comm import Communicator
from trainbox.contract.job import Channel
from trainbox.data import Coding, ColumnSpec, Table, digest, read_table
from trainbox.log_lines import emit
from trainbox.sklearn.agreement import HostReport, agree, check_training_labels, stays_sharded
from trainbox.sklearn.params import EstimatorParams
from trainbox.sklearn.rows import allgather_rows, count_bytes, gather_rows, join_rows
from trainbox.sklearn.texts import encode, with_shared_codes
from trainbox.stopping import leaving_at_once
from trainbox.system.memory import read_memory
from trainbox.tabular.channels import find_channels
from trainbox.tabular.domains import WHOLE, Domain, check_known, labels_in
from trainbox.tabular.faults import Scan, raising_everywhere, raising_together
from trainbox.tabular.labels import check_classes, count_labels, refuse_weights
from trainbox.tabular.texts import former_codes

_SHARDED = "ShardedByS3Key"
_COUNTS = Domain("labels of 0 or more", lowest=0)


class EstimatorData(msgspec.Struct, frozen=True, eq=False):
    """The training rows of this host, and on the first host the validation rows."""

    train: Table
    #: Nothing where there is no such channel, and on all members but the first.
    held_out: Table | None
    #: Whether the channel is there.
    has_held_out: bool
    #: The names of the features, the same on all members.
    features: tuple[str, ...]
    #: The labels of training in ascending order; empty for numbers.
    classes: tuple[int, ...]
    #: By rank: what each member's part of the trees is proportional to.
    shares: tuple[int, ...]
    #: Whether each member has rows of its own alone.
    is_sharded: bool
    #: The names of the columns of the channel, which are the features' but for texts with a column each.
    columns: tuple[str, ...] = ()
    #: Of columns of texts.
    coding: Coding = Coding()

    @property
    def scored_channel(self) -> str:
        """The channel on which the model is scored, as metrics name it."""
        return "validation" if self.has_held_out else "train"


@leaving_at_once("reading the rows")
def read_data(params: EstimatorParams, communicator: Communicator) -> EstimatorData:
    """Read the channel `train`, and as `validation` the channel of that name, or else `test`.

    Rows that all hosts have (FullyReplicated) stay as they are. Rows that are sharded are gathered, where they fit.

    Args:
        params: The hyperparameters.
        communicator: The hosts; all call this.

    Raises:
        DataError: A channel cannot be used, the hosts' rows do not fit together, or they are too many for one host.
        ConfigurationError: The hosts have different versions of scikit-learn.
    """
    channels = find_channels(trainbox.current_job())
    if "validation" not in channels:
        emit(
            "no channel 'validation' or 'test': the metrics are those of the training rows, too optimistic for a forest"
        )
    sharded = {name for name, channel in channels.items() if communicator.size > 1 and channel.distribution == _SHARDED}
    tables: dict[str, Table] = {}
    former = former_codes(communicator, trainbox.former_model())
    with raising_everywhere(communicator):
        coded = _read(channels["train"], params, None, former, allow_empty="train" in sharded)
    with raising_together(communicator):
        coded = with_shared_codes(communicator, coded, params, former)
    with raising_everywhere(communicator):
        tables["train"] = encode(coded, params, _memory())
        for name, channel in channels.items():
            if name != "train" and (name in sharded or communicator.rank == 0):
                table = _read(channel, params, coded, coded.coding, allow_empty=name in sharded)
                tables[name] = encode(table, params, _memory())
        report = _report(communicator, params, tables, sharded)
    reports = communicator.gather(report, HostReport)
    with raising_together(communicator):
        names = agree(reports, sharded)
        classes = check_training_labels(params, reports, is_sharded="train" in sharded)
    train = tables["train"]
    if scipy.sparse.issparse(train.features):
        emit("train is sparse: features that a row does not name are 0")
    with raising_together(communicator):
        stays = "train" in sharded and stays_sharded(params, reports)
    if stays:
        train = join_rows([train], names)
    elif "train" in sharded:
        train = allgather_rows(communicator, train, _sizes(reports, "train"), names)
    held_out = tables.get("validation")
    with raising_everywhere(communicator):
        if held_out is not None and params.task == "classification":
            check_known(held_out, classes, channels["validation"], columns_of(params))
    if held_out is not None and "validation" in sharded:
        held_out = gather_rows(communicator, held_out, _sizes(reports, "validation"), names)
    with raising_everywhere(communicator):
        if held_out is not None and held_out.weights is not None and not held_out.weights.any():
            refuse_weights("validation")
    return EstimatorData(
        train=train,
        held_out=held_out,
        has_held_out="validation" in channels,
        features=names,
        classes=classes,
        shares=tuple(report.rows["train"] if stays else 1 for report in reports),
        is_sharded=stays,
        columns=coded.feature_names if coded.coding.features else names,
        coding=coded.coding,
    )


def _memory() -> int:
    """Bytes that this host has."""
    return read_memory().limit_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(
    channel: Channel, params: EstimatorParams, like: Table | None, coding: Coding | None, *, allow_empty: bool
) -> Table:
    """A channel's rows on this member, each with a label that the task can learn from.

    Raises:
        DataError: With file, row and value.
    """
    scan = Scan()
    if params.task == "classification":
        scan = Scan(labels_in(WHOLE, "task=classification"))
    elif params.criterion == "poisson":
        scan = Scan(labels_in(_COUNTS, "criterion=poisson"))
    table = read_table(
        channel,
        like=like if like is not None and like.feature_names else None,
        columns=columns_of(params),
        coding=coding,
        allow_empty=allow_empty,
        inspect=scan,
    )
    scan.check()
    return table


def columns_of(params: EstimatorParams) -> ColumnSpec:
    """Return which columns of a row are labels, weights, groups and features."""
    return ColumnSpec(
        weight=params.csv_weights,
        missing=params.missing,
        delimiter=params.delimiter,
        texts=True,
        categorical=params.categorical or (),
        unseen=params.unseen,
    )


def _report(
    communicator: Communicator, params: EstimatorParams, tables: Mapping[str, Table], sharded: AbstractSet[str]
) -> HostReport:
    train = tables["train"]
    counts: dict[float, int] = {}
    if params.task == "classification":
        counts = count_labels(train.labels)
        check_classes("train", counts, learn=False)  # before all numbers of a regression are sent around as classes
    return HostReport(
        member=communicator.members.name,
        rows={name: len(table.labels) for name, table in tables.items()},
        size={name: count_bytes(table) for name, table in tables.items()},
        digest=digest(train) if communicator.size > 1 and "train" not in sharded else "",
        columns=train.feature_names if len(train.labels) else (),
        classes={f"{label:.0f}": count for label, count in counts.items()},
        extremes=(float(train.labels.min()), float(train.labels.max())) if len(train.labels) else None,
        weight=None if train.weights is None else float(train.weights.sum(dtype=np.float64)),
        memory=_memory(),
        version=sklearn.__version__,
    )


def _sizes(reports: Sequence[HostReport], channel: str) -> list[tuple[int, int]]:
    return [(report.rows[channel], report.size[channel]) for report in reports]


def targets(table: Table, params: EstimatorParams) -> npt.NDArray[Any]:
    """Return the labels; integers for classes, so that predictions are integers, too."""
    return table.labels.astype(np.int64 if params.task == "classification" else np.float64)


def count_missing(table: Table) -> int:
    """Return the number of missing values; in a sparse table, values that are not stored are zeros."""
    features = table.features
    return int(np.isnan(features.data if scipy.sparse.issparse(features) else features).sum())
