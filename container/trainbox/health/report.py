"""How findings are told: JSON lines, a table for people, and files in `output/data/health`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from trainbox.contract.finding import Finding
from trainbox.contract.text import visible
from trainbox.health.checks import CHECKS, amount
from trainbox.health.run import HealthReport
from trainbox.whole import write

DIRECTORY = "health"
_HEADS = ("STATUS", "CHECK", "WHERE", "FOUND", "LIMIT", "WHAT TO DO")


def print_lines(findings: Sequence[Finding]) -> None:
    """One line of JSON for each on stdout."""
    sys.stdout.write("".join(msgspec.json.encode(finding).decode() + "\n" for finding in findings))
    sys.stdout.flush()


def print_table(findings: Sequence[Finding]) -> None:
    """For people: what does not pass one by one, what passes in one row for each check."""
    rows = [tuple(map(visible, row)) for row in _rows(findings)]
    try:
        from rich.console import Console  # noqa: PLC0415 - a person's machine has it, an image need not
        from rich.table import Column, Table  # noqa: PLC0415
    except ModuleNotFoundError:
        widths = [max(len(row[column]) for row in (_HEADS, *rows)) for column in range(len(_HEADS))]
        for row in (_HEADS, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(*(Column(head, overflow="fold") for head in _HEADS), box=None, padding=(0, 2, 0, 0), header_style="")
    for row in rows:
        table.add_row(*row, style={"fail": "red", "warn": "yellow"}.get(row[0]))
    Console(markup=False, emoji=False, highlight=False).print(table)


def _rows(findings: Sequence[Finding]) -> Iterator[tuple[str, ...]]:
    for finding in findings:
        if finding.status != "pass":
            where = f"{finding.host} {finding.device}".rstrip()
            value, limit = amount(finding.check, finding.value), amount(finding.check, finding.limit)
            yield (finding.status, finding.check, where, value, limit, f"{finding.kind}: {finding.hint}")
    for check in CHECKS:
        passed = [finding for finding in findings if finding.check == check and finding.status == "pass"]
        if passed:
            hosts = {finding.host for finding in passed}
            devices = {finding.device for finding in passed if finding.device}
            where = f"{len(hosts)} hosts" if len(hosts) > 1 else passed[0].host
            where += f" {', '.join(sorted(devices))}" if devices else ""
            yield ("pass", check, where, _common(check, passed), "", next((one.hint for one in passed if one.hint), ""))


def _common(check: str, passed: Sequence[Finding]) -> str:
    values = {amount(check, finding.value) for finding in passed}
    return values.pop() if len(values) == 1 else ""


def write_report(directory: Path, host: str, report: HealthReport) -> None:
    """Write `HOST.json`; that of the first host has the findings of all hosts.

    Raises:
        OSError: It cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write(directory / f"{host}.json", msgspec.json.format(msgspec.json.encode(report)))
