"""Pure: `health.html`, one file that needs nothing else: who passes what, and every pair of hosts as a picture."""

import html
from collections.abc import Mapping, Sequence

from trainbox.contract.finding import Finding, in_words
from trainbox.health.checks import amount

_COLOURS = {"pass": "#b7e1c0", "warn": "#ffe08a", "fail": "#f3a6a0"}
_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse;margin:1em 0}"
    "th{font-weight:normal;text-align:left;padding:2px 8px}td{border:1px solid #fff;padding:2px 8px;text-align:center}"
)


def draw_page(findings: Sequence[Finding], verdict: str) -> str:
    """The page.

    Args:
        findings: Of all hosts. Those whose device is another host and whose value is a number are pairs.
        verdict: What follows from them, in a line.
    """
    hosts = list(dict.fromkeys(finding.host for finding in findings))
    parts = [f"<h1>Health</h1><p>{html.escape(verdict)}</p>", _grid(findings, hosts)]
    for check in dict.fromkeys(finding.check for finding in findings if finding.device in hosts):
        pairs = {
            (one.host, one.device): one.value
            for one in findings
            if one.check == check and one.device in hosts and isinstance(one.value, int | float)
        }
        parts += [f"<h2>{html.escape(check)}</h2>", draw_matrix(hosts, pairs)] if pairs else []
    return f"<!doctype html><meta charset=utf-8><title>Health</title><style>{_STYLE}</style>{''.join(parts)}\n"


def _grid(findings: Sequence[Finding], hosts: Sequence[str]) -> str:
    """Hosts across, checks down; each cell has the worst status, and says on hovering why."""
    rows = ["<tr><th>" + "".join(f"<th>{html.escape(host)}" for host in hosts)]
    for check in dict.fromkeys(finding.check for finding in findings):
        cells = []
        for host in hosts:
            here = [finding for finding in findings if (finding.check, finding.host) == (check, host)]
            cells.append(_cell(here))
        rows.append(f"<tr><th>{html.escape(check)}{''.join(cells)}")
    return f"<table>{''.join(rows)}</table>"


def _cell(here: Sequence[Finding]) -> str:
    if not here:
        return "<td>"
    worst = max((finding.status for finding in here), key=list(_COLOURS).index)
    why = "\n".join(
        f"{finding.device} {in_words(finding, amount)} {finding.hint}".strip()
        for finding in here
        if finding.status == worst
    )
    return f'<td style="background:{_COLOURS[worst]}" title="{html.escape(why)}">{worst}'


def draw_matrix(hosts: Sequence[str], pairs: Mapping[tuple[str, str], float]) -> str:
    """A square for each pair, the faster the greener; a pair that was not measured stays empty.

    Args:
        hosts: In the order of rows and columns.
        pairs: What was measured between two hosts, in either order.
    """
    most = max(pairs.values())
    rows = ["<tr><th>" + "".join(f"<th>{html.escape(host)}" for host in hosts)]
    for one in hosts:
        cells = []
        for other in hosts:
            value = pairs.get((one, other), pairs.get((other, one)))
            hue = 0 if value is None or not most else round(120 * value / most)
            cells.append("<td>" if value is None else f'<td style="background:hsl({hue} 60% 75%)">{value:g}')
        rows.append(f"<tr><th>{html.escape(one)}{''.join(cells)}")
    return f"<table>{''.join(rows)}</table>"
