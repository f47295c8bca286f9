"""The rows of a channel on one member: a table in memory, or blocks on the disk.

Rows that do not fit into the memory limit are decoded once into blocks, which XGBoost reads many times: parsing text
each time would take most of the job.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import scipy.sparse

from trainbox.contract.cluster.world import world_hosts
from trainbox.contract.job import Channel, Job
from trainbox.data import (
    Coding,
    ColumnSpec,
    Table,
    digest,
    estimate_bytes,
    read_blocks,
    read_table,
    take_part,
)
from trainbox.errors import DataError, HyperparameterError
from trainbox.log_lines import emit
from trainbox.system.shm_dir import temporary_directory
from trainbox.tabular.faults import Fault, Scan
from trainbox.tabular.labels import MOST_CLASSES, count_labels
from trainbox.xgboost.params.hyperparameters import XGBoostParams, metric_names
from trainbox.xgboost.rows.agreement import LabelSummary
from trainbox.xgboost.rows.blocks import is_sparse_block, write_block
from trainbox.xgboost.rows.domains import rules_for

#: In memory the decoded rows stand beside the binned ones and what the sketch of the bins needs.
IN_MEMORY_FACTOR = 2.0
#: What of the memory limit the rows may take; the rest is the trees', the metrics', the kernel's.
MEMORY_SHARE = 0.6
BLOCK_ROWS = 262_144
Floats = npt.NDArray[np.float32]


class RowPartition(msgspec.Struct, frozen=True):
    """The part of a host's rows that this member reads."""

    index: int = 0
    count: int = 1


class Shard(msgspec.Struct, frozen=True, eq=False):
    """The rows of a channel on this member: one table, or blocks on the disk."""

    channel: str
    blocks: tuple[Table | Path, ...]
    rows: int
    feature_names: tuple[str, ...]
    labels: LabelSummary
    digest: str
    files: tuple[Path, ...]
    #: Of its columns of texts.
    coding: Coding = Coding()

    @property
    def is_on_disk(self) -> bool:
        """Whether the rows are in blocks on the disk."""
        return bool(self.blocks) and isinstance(self.blocks[0], Path)

    @property
    def is_sparse(self) -> bool:
        """Whether rows are sparse, so that there may be more columns than the rows show."""
        (*_, last) = self.blocks or (None,)
        if isinstance(last, Path):
            return is_sparse_block(last)
        return last is not None and scipy.sparse.issparse(last.features)

    @property
    def table(self) -> Table:
        """The rows, where they are in memory."""
        (table,) = self.blocks
        if isinstance(table, Path):
            raise TypeError("the rows are on the disk")
        return table


def columns_of(params: XGBoostParams) -> ColumnSpec:
    """Return which columns of a row are labels, weights, groups and features."""
    return ColumnSpec(
        labels=params.label_columns,
        weight=params.csv_weights,
        group=params.group_column,
        missing=params.missing,
        delimiter=params.delimiter,
        bounds=params.objective == "survival:aft",
        texts=True,
        categorical=params.categorical or (),
        unseen=params.unseen,
    )


def partition_of(channel: Channel, job: Job, rank: int, size: int) -> RowPartition:
    """Return this member's part: sharded rows are split among a host's processes, replicated ones among all members.

    The incumbent trains on replicated rows as often as there are hosts.
    """
    processes = size // len(world_hosts(job))
    if channel.distribution == "ShardedByS3Key":
        return RowPartition(rank % processes, processes)
    return RowPartition(rank, size)


def is_too_large(estimate: int, limit: int | None, *, processes: int, asked: str) -> bool:
    """Whether rows of this size must stay on the disk.

    Args:
        estimate: Bytes of the decoded rows of one process.
        limit: Bytes that the host's processes may use together; `None` where nobody knows.
        processes: Of this job on the host.
        asked: `auto`, `on` or `off`.
    """
    if asked != "auto":
        return asked == "on"
    return limit is not None and estimate * IN_MEMORY_FACTOR * processes > limit * MEMORY_SHARE


def read_shard(
    channel: Channel,
    name: str,
    params: XGBoostParams,
    part: RowPartition,
    *,
    like: Shard | None,
    spool: Path | None,
    coding: Coding | None = None,
    allow_empty: bool = False,
) -> Shard:
    """Read this member's rows of a channel, once.

    Args:
        channel: Where they are.
        name: What the channel is to this script: `train` or `validation`.
        params: The hyperparameters.
        part: Which of the rows.
        like: A shard with the columns that these rows must have.
        spool: An empty directory for blocks; `None`: keep them in memory.
        coding: The codes of texts that these rows must follow; of rows to learn from they are found out.
        allow_empty: Whether there may be no row: other members have some.

    Raises:
        DataError: With file, line and column.
    """
    scan = Scan(*rules_for(params, metric_names(params)))
    if spool is not None:
        shard = _spool(
            channel, name, params, part, like=like, directory=spool, coding=coding, allow_empty=allow_empty, scan=scan
        )
    else:
        table = read_table(
            channel,
            like=like.table if like is not None and like.rows else None,
            columns=columns_of(params),
            content_type=channel.content_type,
            coding=coding,
            allow_empty=allow_empty,
            inspect=scan,
        )
        shard = shard_of(take_part(table, part.index, part.count) if part.count > 1 else table, name, params)
    return with_fault(shard, scan.fault)


def with_fault(shard: Shard, fault: Fault | None) -> Shard:
    """Return the shard with a fault of its rows."""
    return msgspec.structs.replace(shard, labels=msgspec.structs.replace(shard.labels, fault=fault))


def shard_of(table: Table, name: str, params: XGBoostParams) -> Shard:
    """Return a shard of a table in memory."""
    return Shard(
        channel=name,
        blocks=(table,),
        rows=len(table.labels),
        feature_names=table.feature_names,
        labels=_labels([table.labels], [table.weights], params),
        digest=digest(table),
        files=table.files,
        coding=table.coding,
    )


def empty_shard(like: Shard, columns: tuple[str, ...], params: XGBoostParams, *, spool: Path | None) -> Shard:
    """Return an empty shard for a member without rows; if the others have blocks, it has an empty block.

    Args:
        like: Its shard, in which nothing is.
        columns: Those of the others.
        params: The hyperparameters.
        spool: A directory for the block; `None`: in memory.
    """
    labels = np.empty(0 if params.label_columns == 1 else (0, params.label_columns), np.float32)
    weights = np.empty(0, np.float32) if params.csv_weights else None
    groups = np.empty(0, np.int64) if params.is_ranking else None
    table = Table(labels, np.empty((0, len(columns)), np.float32), columns, (), weights, groups, like.coding)
    shard = shard_of(table, like.channel, params)
    if spool is None:
        return shard
    spool.mkdir(parents=True, exist_ok=True)
    return msgspec.structs.replace(shard, blocks=(write_block(spool, 0, table),))


def _spool(
    channel: Channel,
    name: str,
    params: XGBoostParams,
    part: RowPartition,
    *,
    like: Shard | None,
    directory: Path,
    coding: Coding | None,
    allow_empty: bool,
    scan: Scan,
) -> Shard:
    """Decode the rows once, block by block, onto the disk; the codes of texts are those of their first rows."""
    directory.mkdir(parents=True)
    paths: list[Path] = []
    labels: list[Floats] = []
    weights: list[Floats | None] = []
    digests: list[str] = []
    names: tuple[str, ...] = ()
    found = coding or Coding()
    blocks = read_blocks(
        channel,
        columns=columns_of(params),
        content_type=channel.content_type,
        like=like.feature_names or None if like is not None else None,
        coding=coding,
        rows=BLOCK_ROWS,
        allow_empty=allow_empty,
        inspect=scan,
    )
    for number, whole in enumerate(blocks):
        block = take_part(whole, part.index, part.count) if part.count > 1 else whole
        if block.groups is not None:
            raise DataError(
                f"channel {channel.name}: groups of ranking cannot be read from the disk block by block",
                hint="external_memory=off, on an instance with more memory",
            )
        paths.append(write_block(directory, number, block))
        labels.append(block.labels)
        weights.append(block.weights)
        digests.append(digest(block))
        names, found = block.feature_names, block.coding
    emit(f"{name}: {sum(map(len, labels)):,} rows are in {len(paths)} blocks on the disk (external memory)")
    return Shard(
        channel=name,
        blocks=tuple(paths),
        rows=sum(map(len, labels)),
        feature_names=names,
        labels=_labels(labels, weights, params),
        digest="+".join(digests),
        files=(),
        coding=found,
    )


def summarize_blocks(blocks: Iterable[Table], params: XGBoostParams) -> dict[str, Any]:
    """Return the fields of a shard that describe its blocks: `labels` and `digest`."""
    labels, weights, digests = [], [], []
    for block in blocks:
        labels.append(block.labels)
        weights.append(block.weights)
        digests.append(digest(block))
    return {"labels": _labels(labels, weights, params), "digest": "+".join(digests)}


def _labels(parts: Sequence[Floats], weights: Sequence[Floats | None], params: XGBoostParams) -> LabelSummary:
    """What the barrier needs to know; classes are counted, numbers are not."""
    filled = [part for part in parts if part.size]
    if not filled:
        return LabelSummary()
    lowest, highest = min(float(part.min()) for part in filled), max(float(part.max()) for part in filled)
    given = [float(part.sum(dtype=np.float64)) for part in weights if part is not None]
    weight = sum(given) if given else None
    if params.classes is None:
        return LabelSummary(lowest, highest, weight=weight)
    counts: Counter[float] = Counter()
    for part in filled:
        counts.update(count_labels(part))
    return LabelSummary(lowest, highest, dict(counts) if len(counts) <= MOST_CLASSES else {}, weight)


@contextmanager
def spool_directory() -> Iterator[Path]:
    """Yield a temporary directory for blocks."""
    with temporary_directory("trainbox-blocks-") as path:
        yield path


def disk_needed(channels: Mapping[str, Channel], processes: int, params: XGBoostParams, limit: int | None) -> bool:
    """Whether the processes of a host must read the channels block by block; logs the reason.

    Raises:
        HyperparameterError: It is asked for with a tree method that cannot do it.
    """
    estimate = sum(
        estimate_bytes(channel, columns=columns_of(params))
        for channel in channels.values()
        if channel.input_mode != "Pipe"  # nobody knows how much comes out of a pipe
    )
    if not is_too_large(estimate, limit, processes=processes, asked=params.external_memory):
        return False
    if not params.is_binned:
        raise HyperparameterError(
            f"external memory works with tree_method=hist, not with {params.tree_method}",
            hint="tree_method=hist, or external_memory=off on an instance with more memory",
        )
    if params.external_memory == "auto" and limit is not None:
        emit(f"about {estimate / 2**20:,.0f} MiB of rows, {limit / 2**20:,.0f} MiB of memory: they stay on the disk")
    return True
