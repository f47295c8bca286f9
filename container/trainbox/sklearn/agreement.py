"""Decide from the reports of all hosts: the features, the classes, and whether sharded rows are gathered."""

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from trainbox.errors import ConfigurationError, DataError, HyperparameterError
from trainbox.log_lines import emit
from trainbox.sklearn.params import EstimatorParams
from trainbox.tabular.labels import check_classes, list_counts, refuse_constant, refuse_weights

#: Of a host's memory the most for rows that come from others: on their way they are there twice, and trees grow
#: beside them.
SHARE_OF_MEMORY = 0.25


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
                f"channel {channel}: no rows on any of the {len(reports)} hosts",
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
        DataError: They are all equal, or too many for classes.
    """
    counted = reports if is_sharded else reports[:1]
    weights = [report.weight for report in counted if report.weight is not None]
    if weights and not sum(weights):
        refuse_weights("train")
    if params.task == "classification":
        total: Counter[float] = Counter()
        for report in counted:
            total.update({float(label): count for label, count in report.classes.items()})
        counts = dict(sorted(total.items()))
        check_classes("train", counts)
        _check_class_weights(params, counts)
        return tuple(map(int, counts))
    ends = {end for report in counted for end in report.extremes or ()}
    if len(ends) == 1:
        refuse_constant("train", ends.pop(), sum(report.rows["train"] for report in counted))
    return ()


def _check_class_weights(params: EstimatorParams, counts: Mapping[float, int]) -> None:
    weights = params.weights_of_classes
    unknown = [label for label in weights if label not in counts] if isinstance(weights, dict) else []
    if unknown:
        raise HyperparameterError(
            f"hyperparameter 'class_weight' has a weight for {unknown[0]}, which does not occur in the training rows",
            hint=f"the labels are {list_counts(counts)}",
        )
