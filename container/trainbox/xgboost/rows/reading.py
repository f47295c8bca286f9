"""Read the channels on every member, and check that they match, before the first round."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec
import xgboost as xgb

import trainbox
from trainbox.checkpoint.store import Checkpoint
from trainbox.comm import Communicator
from trainbox.contract.cluster.world import world_hosts
from trainbox.contract.job import Channel
from trainbox.data import Coding, Table
from trainbox.errors import DataError
from trainbox.log_lines import emit
from trainbox.stopping import leaving_at_once
from trainbox.system.memory import read_memory
from trainbox.tabular.channels import find_channels
from trainbox.tabular.faults import raising_everywhere, raising_together
from trainbox.tabular.texts import former_codes
from trainbox.xgboost.params.hyperparameters import XGBoostParams
from trainbox.xgboost.rows.agreement import MemberReport, RowsAgreement, agree, check_labels, report_columns
from trainbox.xgboost.rows.matrices import Bins, choose_bins, make_matrices
from trainbox.xgboost.rows.shards import (
    Shard,
    disk_needed,
    empty_shard,
    partition_of,
    read_shard,
    shard_of,
    spool_directory,
)
from trainbox.xgboost.rows.texts import with_shared_codes


class BoostingData(msgspec.Struct, frozen=True, eq=False):
    """The shards of this member, and what all members know of all rows."""

    shards: dict[str, Shard]
    agreement: RowsAgreement

    def matrices(self, params: XGBoostParams, bins: Bins) -> Callable[[], Mapping[str, xgb.DMatrix]]:
        """Return a function that gives the matrices of a segment; call this once, as it frees the rows where it can.

        The matrices are the same for all segments, but for `approx`: there the bins depend on the rows drawn when a
        matrix is first used, so each segment has new ones.
        """
        if params.method == "approx":
            return lambda: make_matrices(dict(self.shards), params, bins=bins)
        made = make_matrices(self.shards, params, bins=bins)
        return lambda: made

    def bins(self, params: XGBoostParams, found: Checkpoint | None) -> Bins:
        """Return how the training rows are binned; a resumed job keeps the bins of its checkpoint."""
        begun = found.info.get("bins") if found is not None else None
        bins = choose_bins(self.shards["train"], params, members=self.agreement.members, begun=begun)
        if bins in {"quantiles", "exact"} and params.bins is None:
            emit("bins stay at exact quantiles, with which the checkpoint was begun")
        return bins

    def of(self, tables: Mapping[str, Table], params: XGBoostParams) -> "BoostingData":
        """Return data with other rows, for a fold."""
        return BoostingData({name: shard_of(table, name, params) for name, table in tables.items()}, self.agreement)


@leaving_at_once("reading the rows")
def read_data(
    params: XGBoostParams, communicator: Communicator, files: ExitStack, *, checkpoint: int | None
) -> BoostingData:
    """Read the channel `train`, and as `validation` the channel of that name, or else `test`.

    Args:
        params: The hyperparameters.
        communicator: All members; every one of them reads.
        files: Keeps blocks on the disk as long as they are needed.
        checkpoint: The round of this member's newest checkpoint.

    Raises:
        DataError: A channel cannot be used, or the members' rows do not fit together.
    """
    job = trainbox.current_job()
    processes = communicator.size // len(world_hosts(job))
    channels = find_channels(job)
    if "validation" not in channels and params.early_stopping_rounds and not params.kfold:
        raise DataError("early_stopping_rounds needs a channel 'validation' or 'test'", hint="add one, or leave it out")
    _check_pipes(channels, processes)
    # What one must do all do: XGBoost's collective counts on the same calls everywhere.
    with raising_everywhere(communicator):
        is_needed = disk_needed(channels, processes, params, read_memory().limit_bytes)
    on_disk = any(communicator.gather(is_needed, bool))
    spool = files.enter_context(spool_directory()) if on_disk else None
    shards: dict[str, Shard] = {}
    former = former_codes(communicator, trainbox.former_model())
    for name, channel in channels.items():
        train = shards.get("train")
        with raising_everywhere(communicator):
            coding = former if train is None else train.coding
            shard = _read(channel, name, params, communicator, like=train, coding=coding, spool=spool)
        if train is None:
            with raising_together(communicator):
                shard = with_shared_codes(shard, communicator, params, former)
        shards[name] = shard
    report = MemberReport(
        member=communicator.members.name,
        rows={name: shard.rows for name, shard in shards.items()},
        labels={name: shard.labels for name, shard in shards.items()},
        columns=report_columns(_widest_columns(shards)),
        digests={name: shard.digest for name, shard in shards.items()},
        checkpoint=checkpoint,
        version=xgb.__version__,
    )
    reports = communicator.gather(report, MemberReport)
    with raising_together(communicator):
        agreement = agree(reports, shards["train"].coding)
        has_events = params.objective == "survival:cox"
        for name, labels in agreement.labels.items():
            rows = agreement.rows[name]
            check_labels(name, labels, rows, learn=name == "train", has_events=has_events)
    if communicator.size > 1:
        held = ", ".join(f"{shard.rows:,} of {agreement.rows[name]:,} rows of {name}" for name, shard in shards.items())
        emit(f"{communicator.members.name} (rank {communicator.rank} of {communicator.size}) has {held}")
    with raising_everywhere(communicator):
        shards = {name: _align_columns(shard, agreement.columns, params, spool) for name, shard in shards.items()}
    return BoostingData(shards, agreement)


def _check_pipes(channels: Mapping[str, Channel], processes: int) -> None:
    piped = [name for name, channel in channels.items() if channel.input_mode == "Pipe"]
    if piped and processes > 1:
        raise DataError(
            f"channel {piped[0]}: the {processes} processes of a host cannot all read its one pipe",
            hint="use File or FastFile mode, or one process a host",
        )


def _read(
    channel: Channel,
    name: str,
    params: XGBoostParams,
    communicator: Communicator,
    *,
    like: Shard | None,
    coding: Coding | None,
    spool: Path | None,
) -> Shard:
    """This member's rows of a channel; among several it may have none."""
    part = partition_of(channel, trainbox.current_job(), communicator.rank, communicator.size)
    several = communicator.size > 1
    directory = spool and spool / name
    shard = read_shard(channel, name, params, part, like=like, spool=directory, coding=coding, allow_empty=several)
    if several and not shard.rows:
        emit(f"{name}: no rows on {communicator.members.name}, which still takes part in training")
    return shard


def _widest_columns(shards: Mapping[str, Shard]) -> tuple[str, ...]:
    """The columns of the rows to learn from; of sparse ones as many as any channel has.

    A row that is held out may well have a feature, a word perhaps, that no row to learn from has: the trees never ask
    for it.
    """
    train = shards["train"]
    if not train.rows or not train.is_sparse:
        return train.feature_names
    return max((shard.feature_names for shard in shards.values()), key=len)


def _align_columns(shard: Shard, columns: tuple[str, ...], params: XGBoostParams, spool: Path | None) -> Shard:
    """The shard in the columns that all have agreed on; one without a row becomes a table without rows.

    Raises:
        DataError: Its rows, or those of `train`, are not sparse, and have other columns.
    """
    if len(shard.feature_names) > len(columns):
        raise DataError(
            f"channel {shard.channel}: a row has feature {len(shard.feature_names) - 1},"
            f" but the last feature of channel train is {len(columns) - 1} (counted from 0)",
            hint="features must be numbered alike in all channels",
        )
    if not shard.rows:
        if shard.is_on_disk:
            return shard
        return empty_shard(shard, columns, params, spool=spool and spool / shard.channel)
    if len(shard.feature_names) == len(columns):
        return shard
    if not shard.is_sparse:
        raise DataError(
            f"channel {shard.channel}: rows have {len(shard.feature_names)} features here, others {len(columns)}",
            hint="every file of every channel, on every host, must have the same columns",
        )
    if shard.is_on_disk:
        return msgspec.structs.replace(shard, feature_names=columns)
    table = shard.table
    features = table.features.copy()
    features.resize((table.features.shape[0], len(columns)))
    table = msgspec.structs.replace(table, features=features, feature_names=columns)
    return msgspec.structs.replace(shard, blocks=(table,), feature_names=columns)
