"""The rows of a job of one host or many: read, agreed upon, and brought to where the trees grow."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import scipy.sparse
import sklearn

import trainbox
from trainbox import toolkit
from trainbox.comm import Communicator, find_members, join
from trainbox.contract.job import Channel, Job
from trainbox.contract.world import world_hosts
from trainbox.data import Coding, ColumnSpec, Table, digest, log_unread, read_table
from trainbox.errors import ConfigurationError, DataError, HyperparameterError, RunError
from trainbox.log_lines import emit
from trainbox.sklearn.params import EstimatorParams
from trainbox.sklearn.rows import allgather_rows, count_bytes, gather_rows, join_rows
from trainbox.sklearn.texts import encode, with_shared_codes
from trainbox.stopping import leaving_at_once
from trainbox.system.memory import read_memory
from trainbox.tabular.domains import WHOLE, Domain, check_known, labels_in
from trainbox.tabular.faults import Scan, raising_everywhere, raising_together
from trainbox.tabular.labels import check_classes, count_labels, list_counts, refuse_constant, refuse_weights
from trainbox.tabular.texts import former_codes

#: Of a host's memory the most for rows that come from others: on their way they are there twice, and trees grow
#: beside them.
SHARE_OF_MEMORY = 0.25
_SHARDED = "ShardedByS3Key"
_COUNTS = Domain("labels of 0 or more", lowest=0)


class HostReport(msgspec.Struct, frozen=True):
    """What one member says of the rows that it has read."""

    member: str
    #: By channel.
    rows: Mapping[str, int]
    size: Mapping[str, int]
    #: Of training, where all members must have the same; else nothing.
    digest: str
    #: Nothing where it has no row.
    columns: tuple[str, ...]
    #: Of training: how many rows each class has, by its text; empty where numbers are predicted.
    classes: Mapping[str, int]
    #: Of training: the lowest and the highest label; nothing where it has no row.
    extremes: tuple[float, float] | None
    #: Of training: the sum of the rows' weights, where they have any.
    weight: float | None
    #: Bytes of memory that its host may use.
    memory: int
    version: str


class EstimatorData(msgspec.Struct, frozen=True, eq=False):
    """What this member trains on and, on the first, what the model is judged by."""

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
        """The channel by which the model is judged, as metrics name it."""
        return "validation" if self.has_held_out else "train"


@contextmanager
def connect() -> Iterator[Communicator]:
    """Come together with the other hosts of this job, if there are any; a context manager.

    Raises:
        PeerError: Some never came; the message names them.
        Stopped: SIGTERM has come, to this process or to another.
        RunError: The host has several processes: one uses all processors, and holds the rows once.
    """
    job = trainbox.current_job()
    members = find_members(job, toolkit.current_ranks())
    if members.size > len(world_hosts(job)):
        raise RunError(
            "random_forest_train.py runs in one process on each host", hint="leave processes_per_host out; see n_jobs"
        )
    timeout, limit = job.settings.peer_timeout_seconds, job.settings.hang_seconds
    with ExitStack() as stack:
        with leaving_at_once("meeting the other hosts"):
            communicator = stack.enter_context(join(members, timeout=timeout, limit=limit, port=job.port))
        yield communicator


@leaving_at_once("reading the rows")
def read_data(params: EstimatorParams, communicator: Communicator) -> EstimatorData:
    """Read `train`, and `validation` where there is a channel of that name or `test`.

    Rows that all hosts have (FullyReplicated) stay as they are. Rows that are sharded are gathered, where they fit.

    Args:
        params: The hyperparameters.
        communicator: The hosts; all call this.

    Raises:
        DataError: A channel cannot be used, the hosts' rows do not fit together, or they are too many for one host.
        ConfigurationError: The hosts have different versions of scikit-learn.
    """
    channels = find_channels(trainbox.current_job())
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
        emit("train is sparse: a feature that a row does not name is 0 there")
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
    """What stands where in a row."""
    return ColumnSpec(
        weight=params.csv_weights,
        missing=params.missing,
        delimiter=params.delimiter,
        texts=True,
        categorical=params.categorical or (),
        unseen=params.unseen,
    )


def find_channels(job: Job) -> dict[str, Channel]:
    """The channels to read, by what they are to this script."""
    trainbox.channel("train")  # says what is there if it is not
    channels = {"train": job.channels["train"]}
    held_out = [name for name in ("validation", "test") if name in job.channels][:1]
    log_unread(job.channels, ["train", *held_out])
    if held_out:
        channels["validation"] = job.channels[held_out[0]]
    else:
        emit("no channel 'validation' or 'test': the metrics are those of the rows trained on, which flatter a forest")
    return channels


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


def agree(reports: Sequence[HostReport], sharded: AbstractSet[str]) -> tuple[str, ...]:
    """Pure: the names of the features, where the rows of all members fit together.

    Args:
        reports: By rank.
        sharded: The channels of which each member has rows of its own.

    Raises:
        DataError: There is no row, or members differ where they must not; they are named.
        ConfigurationError: The version of scikit-learn is not the same everywhere.
    """
    first = reports[0]
    for channel in sharded:
        if not sum(report.rows[channel] for report in reports):
            raise DataError(
                f"channel {channel}: there is no row on any of the {len(reports)} hosts",
                hint="check the S3 prefix of the channel",
            )
    widest = max((report for report in reports if report.columns), key=lambda report: len(report.columns))
    for report in reports:
        if report.version != first.version:
            raise ConfigurationError(
                f"{report.member} has scikit-learn {report.version}, {first.member} has {first.version}",
                hint="all hosts must run the same image",
            )
        if report.columns and report.columns != widest.columns and not _is_part(report.columns, widest.columns):
            raise DataError(f"{report.member} {_differ(report, widest)}", hint="every file must have the same columns")
        if report.digest != first.digest:
            raise DataError(
                f"channel train: {report.member} has other rows than {first.member}, but the channel is not sharded",
                hint="S3DistributionType says whether each host has all rows (FullyReplicated) or its own"
                " (ShardedByS3Key)",
            )
    return widest.columns


def _is_part(names: tuple[str, ...], wider: tuple[str, ...]) -> bool:
    """Whether the names are those of files that do not say how many features there are."""
    return names == wider[: len(names)] == tuple(f"f{place}" for place in range(len(names)))


def _differ(report: HostReport, other: HostReport) -> str:
    if len(report.columns) != len(other.columns):
        return f"has {len(report.columns)} features, {other.member} has {len(other.columns)}"
    pairs = zip(report.columns, other.columns, strict=True)
    place, (name, expected) = next((place, pair) for place, pair in enumerate(pairs, start=1) if len({*pair}) > 1)
    return f"calls feature {place} {name!r}, {other.member} calls it {expected!r}"


def stays_sharded(params: EstimatorParams, reports: Sequence[HostReport]) -> bool:
    """Whether sharded rows stay where they are, for want of memory or because the engine wants them so.

    Raises:
        DataError: They are too many for one host, and no way without gathering them was chosen.
    """
    total = sum(size for report in reports for size in report.size.values())
    least = min(reports, key=lambda report: report.memory)
    if params.engine == "xgboost":
        return True
    where = f"{SHARE_OF_MEMORY:.0%} of the {least.memory / 1e9:.1f} GB of {least.member}"
    if total <= least.memory * SHARE_OF_MEMORY:
        emit(f"train is sharded: each of the {len(reports)} hosts gets all rows, {total / 1e6:,.1f} MB (below {where})")
        return False
    if params.allow_shard_forests:
        emit(
            f"train is sharded and has {total / 1e9:,.1f} GB, more than {where}: as allow_shard_forests says, each host"
            " grows trees on its own rows, as many as it has rows. The forest is weaker than one that has seen all rows"
            " with each tree, the more hosts the weaker, and weakest where rows were sorted before they were sharded"
        )
        return True
    raise DataError(
        f"channel train is sharded and has {total / 1e9:,.1f} GB, more than {where}: a tree of this forest must see"
        " all rows",
        hint="take hosts with more memory; or allow_shard_forests=true: each host grows trees on its own rows alone,"
        " a weaker forest; or engine=xgboost: trees of another kind (rows without replacement, splits between bins)"
        " that learn from the rows of all hosts",
    )


def check_training_labels(
    params: EstimatorParams, reports: Sequence[HostReport], *, is_sharded: bool
) -> tuple[int, ...]:
    """The classes in ascending order, none for numbers; the same on all members.

    Raises:
        DataError: There is nothing to learn from them.
    """
    told = reports if is_sharded else reports[:1]
    weights = [report.weight for report in told if report.weight is not None]
    if weights and not sum(weights):
        refuse_weights("train")
    if params.task == "classification":
        total: Counter[float] = Counter()
        for report in told:
            total.update({float(label): count for label, count in report.classes.items()})
        counts = dict(sorted(total.items()))
        check_classes("train", counts)
        _check_class_weights(params, counts)
        return tuple(map(int, counts))
    ends = {end for report in told for end in report.extremes or ()}
    if len(ends) == 1:
        refuse_constant("train", ends.pop(), sum(report.rows["train"] for report in told))
    return ()


def _check_class_weights(params: EstimatorParams, counts: Mapping[float, int]) -> None:
    weights = params.weights_of_classes
    unknown = [label for label in weights if label not in counts] if isinstance(weights, dict) else []
    if unknown:
        raise HyperparameterError(
            f"hyperparameter 'class_weight' has a weight for {unknown[0]}, which no row of training has",
            hint=f"the labels are {list_counts(counts)}",
        )


def targets(table: Table, params: EstimatorParams) -> npt.NDArray[Any]:
    """The labels; as whole numbers where they are classes, so that the model's predictions are."""
    return table.labels.astype(np.int64 if params.task == "classification" else np.float64)


def count_missing(table: Table) -> int:
    """How many values are missing; in a sparse table, what is not stored is zero."""
    features = table.features
    return int(np.isnan(features.data if scipy.sparse.issparse(features) else features).sum())
