"""Check that the rows of all members match, before training.

The incumbent notices a mismatch in the middle of a collective, or not at all: a host without validation rows is left
out with all of its training rows, and columns that differ between hosts are treated as equal.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from trainbox.data import Coding, default_names
from trainbox.errors import ConfigurationError, DataError
from trainbox.tabular.faults import Fault
from trainbox.tabular.labels import MOST_CLASSES, list_counts, refuse_constant, refuse_weights

NO_TEXTS = Coding()


class LabelSummary(msgspec.Struct, frozen=True):
    """A summary of the labels of some rows."""

    lowest: float | None = None
    highest: float | None = None
    #: How many rows each label has; empty if they are too many, or not classes.
    counts: Mapping[float, int] = {}
    #: The sum of the rows' weights, where they have any.
    weight: float | None = None
    #: The first row whose label, code or weight breaks a rule.
    fault: Fault | None = None


class MemberReport(msgspec.Struct, frozen=True):
    """The report of one member on its rows and checkpoint, before the first round."""

    member: str
    #: Rows and labels of each channel.
    rows: Mapping[str, int]
    labels: Mapping[str, LabelSummary]
    #: The names of the features, or how many there are where no file names them; nothing where it has no row.
    columns: tuple[str, ...] | int
    #: Digests of its rows.
    digests: Mapping[str, str]
    #: The round of its newest checkpoint.
    checkpoint: int | None
    #: Of XGBoost: members of different ones grow different trees.
    version: str


class RowsAgreement(msgspec.Struct, frozen=True):
    """What all members know of all rows and checkpoints."""

    rows: Mapping[str, int]
    labels: Mapping[str, LabelSummary]
    columns: tuple[str, ...]
    digests: Mapping[str, tuple[str, ...]]
    #: The newest checkpoint, and the rank of the member that has it; nothing where nobody has one.
    checkpoint: tuple[int, int] | None
    #: Of columns of texts, the same for all.
    coding: Coding = Coding()

    @property
    def members(self) -> int:
        """The number of members."""
        return len(self.digests["train"])


def agree(reports: Sequence[MemberReport], coding: Coding = NO_TEXTS) -> RowsAgreement:
    """Combine the reports of all members, in the order of ranks.

    Args:
        reports: By rank.
        coding: Of columns of texts, which all have agreed on before.

    Raises:
        DataError: No member has a row of a channel, or columns differ; the members are named.
        ConfigurationError: XGBoost's version is not the same everywhere.
    """
    _same_version(reports)
    channels = reports[0].rows
    rows = {channel: sum(report.rows[channel] for report in reports) for channel in channels}
    for channel, count in rows.items():
        if not count:
            whom = "the job" if len(reports) == 1 else f"any of the {len(reports)} members"
            raise DataError(f"channel {channel}: no rows on {whom}", hint="check the S3 prefix of the channel")
    _all_have_rows(reports)
    steps = [(report.checkpoint, -rank) for rank, report in enumerate(reports) if report.checkpoint is not None]
    return RowsAgreement(
        rows=rows,
        labels={channel: _together(reports, channel) for channel in channels},
        columns=_columns(reports),
        digests={channel: tuple(report.digests[channel] for report in reports) for channel in channels},
        checkpoint=(max(steps)[0], -max(steps)[1]) if steps else None,
        coding=coding,
    )


def _all_have_rows(reports: Sequence[MemberReport]) -> None:
    """XGBoost 3.2 to 3.4 trains wrongly, or not at all, where a member has no row: with some objectives silently."""
    empty = [report.member for report in reports if not report.rows["train"]]
    if empty:
        raise DataError(
            f"channel train: no rows on {', '.join(empty)}",
            hint="give the channel at least as many files as there are hosts, or use fewer hosts",
        )


def _same_version(reports: Sequence[MemberReport]) -> None:
    first = reports[0]
    for report in reports:
        if report.version != first.version:
            raise ConfigurationError(
                f"{report.member} has XGBoost {report.version}, {first.member} has {first.version}",
                hint="all hosts must run the same image",
            )


def report_columns(names: tuple[str, ...]) -> tuple[str, ...] | int:
    """Return the columns of a report: default names as their number, for a sparse table may have a million."""
    return len(names) if names == default_names(len(names)) else names


def _columns(reports: Sequence[MemberReport]) -> tuple[str, ...]:
    """Of all members that have rows; a sparse file does not say how wide it is, so the widest of those counts."""
    holders = [report for report in reports if report.columns]
    widest = max(holders, key=lambda report: len(_names(report)))
    expected = _names(widest)
    for report in holders:
        if report.columns == widest.columns or (isinstance(report.columns, int) and isinstance(widest.columns, int)):
            continue
        names = _names(report)
        if len(names) != len(expected):
            raise DataError(
                f"{report.member} has {len(names)} features, {widest.member} has {len(expected)}",
                hint="every file on every host must have the same columns",
            )
        place = next(i for i, pair in enumerate(zip(names, expected, strict=True)) if len({*pair}) > 1)
        raise DataError(
            f"{report.member} calls feature {place + 1} {names[place]!r}, {widest.member} calls it {expected[place]!r}",
            hint="every file on every host must have the same columns in the same order",
        )
    return expected


def _names(report: MemberReport) -> tuple[str, ...]:
    return default_names(report.columns) if isinstance(report.columns, int) else report.columns


def _together(reports: Sequence[MemberReport], channel: str) -> LabelSummary:
    parts = [report.labels[channel] for report in reports]
    known = [part for part in parts if part.lowest is not None and part.highest is not None]
    if not known:
        return LabelSummary()
    weights = [part.weight for part in known if part.weight is not None]
    counts: Counter[float] = Counter()
    for part in known:
        counts.update(part.counts)
    complete = all(part.counts for part in known) and len(counts) <= MOST_CLASSES
    return LabelSummary(
        lowest=min(part.lowest for part in known if part.lowest is not None),
        highest=max(part.highest for part in known if part.highest is not None),
        counts=dict(sorted(counts.items())) if complete else {},
        weight=sum(weights) if weights else None,
        fault=_first_fault(reports, channel),
    )


def _first_fault(reports: Sequence[MemberReport], channel: str) -> Fault | None:
    """That of the first member that has one; of several members it is named."""
    for report in reports:
        fault = report.labels[channel].fault
        if fault is not None:
            prefix = f"{report.member}: " if len(reports) > 1 else ""
            return Fault(prefix + fault.message, fault.hint)
    return None


def check_labels(channel: str, labels: LabelSummary, rows: int, *, learn: bool, has_events: bool = False) -> None:
    """Reject rows that break a rule, and labels that are all equal.

    Args:
        channel: Their channel, for the message.
        labels: Of all members.
        rows: How many there are.
        learn: Whether these are the rows to learn from: then one label alone is an error, too.
        has_events: Whether a label above 0 is an event, and another one of a row that had none.

    Raises:
        DataError: A row breaks a rule, with file and value; or all labels are the same, or no row counts.
    """
    if labels.fault is not None:
        found = f"; channel {channel} has the labels {list_counts(labels.counts)}" if labels.counts else ""
        raise DataError(labels.fault.message + found, hint=labels.fault.hint)
    if labels.weight == 0:
        refuse_weights(channel)
    if learn and has_events and labels.highest is not None and labels.highest <= 0:
        raise DataError(
            f"channel {channel}: no label is above 0, so there is no event; survival:cox needs at least one",
            hint="a label of survival:cox is the time of an event, or negative for a row without one (censored)",
        )
    if learn and labels.lowest is not None and labels.lowest == labels.highest:
        refuse_constant(channel, labels.lowest, rows)
