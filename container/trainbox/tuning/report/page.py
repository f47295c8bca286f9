"""The page: facts, figures and the table in one file, with Plotly's JavaScript in it."""

from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from trainbox.tuning.records import TuningRecord
from trainbox.tuning.report.curves import TrialCurves
from trainbox.tuning.report.figures import curves_figure, importance_figure, objective_figure, parallel_figure
from trainbox.tuning.report.importance import FEWEST_TRIALS
from trainbox.tuning.report.texts import page_text
from trainbox.tuning.report.trial_table import facts, trial_table

#: A browser loads nothing from the network, even if a text has HTML. Parallel coordinates compile shaders (`eval`).
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:;"
    " form-action 'none'; base-uri 'none'"
)
#: One of Plotly's buttons uploads the figure to its company.
_BUTTONS_LEFT_OUT = ("sendChartToCloud", "lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#24292f;max-width:1200px;margin:0 auto;padding:24px}
h1{font-size:24px;margin:0 0 8px}h2{font-size:18px;margin:32px 0 4px;border-bottom:1px solid #d0d7de}
p{color:#57606a;margin:4px 0}dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:0}
dt{color:#57606a}dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;width:100%}
th,td{text-align:left;padding:4px 10px;border-bottom:1px solid #e6eaee;vertical-align:top}
th{cursor:pointer;white-space:nowrap;background:#f6f8fa}th:hover{color:#0969da}
td{overflow-wrap:break-word;max-width:420px}th{max-width:220px;overflow:hidden;text-overflow:ellipsis}
.word{white-space:nowrap}
.best{background:#ddf4ff;font-weight:600}.failed{color:#cf222e}.stopped,.stopped-early{color:#9a6700}
.reason{white-space:pre-wrap;overflow-wrap:anywhere;min-width:120px;font-weight:400}a{color:#0969da}
"""
_SORT = """
for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const body = document.querySelector("tbody"), column = head.cellIndex, sign = head.dataset.up ? -1 : 1;
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => a === "" || b === "" ? (a === "") - (b === "")
    : sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  for (const other of document.querySelectorAll("th")) delete other.dataset.up;
  if (sign > 0) head.dataset.up = "1";
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
};
"""


def write_page(record: TuningRecord, curves: TrialCurves, shares: Mapping[str, float]) -> str:
    """Pure: write the whole page.

    Args:
        record: Of the tuning job.
        curves: What its trials logged.
        shares: The importance of each hyperparameter; empty where it is not known.
    """
    sections = [
        _section("Objective", objective_figure(record), "", "No trial has an objective."),
        _section(
            "Curves",
            curves_figure(record, curves.metrics),
            "One line for each trial; the better its objective, the darker.",
            "No trial has logged a metric.",
        ),
        _section(
            "Parallel coordinates",
            parallel_figure(record),
            "Drag along an axis to choose trials; drag its name to move it.",
            "No trial has an objective.",
        ),
        _section(
            "Importance",
            importance_figure(shares),
            "How far the values of the best quarter of the trials differ from those of all (PED-ANOVA).",
            f"It takes {FEWEST_TRIALS} trials with different objectives.",
        ),
    ]
    title = page_text(record.name)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{title}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head>\n"
        f"<body><h1>{title}</h1>{facts(record)}\n{''.join(sections)}"
        f'<h2>Trials</h2><div class="scroll">{trial_table(record, curves.problems)}</div>'
        f"<script>{_SORT}</script></body></html>\n"
    )


def _section(title: str, figure: go.Figure | None, about: str, missing: str) -> str:
    if figure is None:
        return f"<h2>{title}</h2><p>{missing}</p>\n"
    config = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": [*_BUTTONS_LEFT_OUT]}
    name = title.lower().replace(" ", "-")
    drawn = to_html(figure, config=config, include_plotlyjs=False, full_html=False, div_id=name)
    return f"<h2>{title}</h2><p>{about}</p>{drawn}\n"
