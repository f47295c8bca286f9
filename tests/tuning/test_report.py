"""The report of a tuning job: what it shows of any search, and that no text of anyone becomes markup."""

import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from plotly.offline import get_plotlyjs

from tests.support.html_reader import read_html
from tests.support.tuning_records import HOSTILE, OBJECTIVE, write_search
from trainbox.errors import RunError
from trainbox.local.results.record import Curve
from trainbox.tuning.records import TrialRecord, TuningRecord
from trainbox.tuning.report.axes import number_axis, parameter_axis
from trainbox.tuning.report.curves import read_curves, thin
from trainbox.tuning.report.importance import rank_importance
from trainbox.tuning.report.page import write_page
from trainbox.tuning.report.write_report import write_report
from trainbox.tuning.search_space import CategoricalRange, ContinuousRange, IntegerRange, Objective


def page_of(record: TuningRecord, directory: Path) -> str:
    """The page without Plotly's own JavaScript, which is the same in all."""
    page = write_report(record, directory).read_text()
    library = get_plotlyjs()
    assert page.count(library) == 1
    return page.replace(library, "")


def figures(page: str) -> dict[str, list[dict[str, Any]]]:
    """The traces of each figure, by its name."""
    found = re.findall(r'Plotly\.newPlot\(\s*"([a-z-]+)",\s*', page)
    places = [page.index(f'"{name}",', page.index("newPlot")) + len(name) + 3 for name in found]
    return {
        name: json.JSONDecoder().raw_decode(page[place:].lstrip())[0] for name, place in zip(found, places, strict=True)
    }


def test_a_report_has_its_figures_and_its_table(tmp_path: Path) -> None:
    record = write_search(tmp_path, 20)
    page = page_of(record, tmp_path)
    drawn = figures(page)
    assert list(drawn) == ["objective", "curves", "parallel-coordinates", "importance"]
    best, *points = drawn["objective"]
    assert best["name"] == "best so far"
    assert best["y"] == sorted(best["y"])
    known = [trial for trial in record.trials if trial.objective is not None]
    assert sum(len(trace["x"]) for trace in points) == len(known)
    assert drawn["curves"][-1]["name"] == f"trial {record.best} (best)"
    (lines,) = drawn["parallel-coordinates"]
    assert [axis["label"] for axis in lines["dimensions"]] == ["eta", "max_depth", "subsample", "booster", OBJECTIVE]
    assert {len(axis["values"]) for axis in lines["dimensions"]} == {len(known)}
    assert sum(drawn["importance"][0]["x"]) == pytest.approx(1)
    rows = [attributes for tag, attributes in read_html(page).tags if tag == "tr"]
    assert len(rows) == 21
    assert [row.get("class") for row in rows].count("best") == 1
    text = " ".join(read_html(page).texts)
    assert "AlgorithmError: ValueError" in text
    assert "Stopped early" in text


def test_a_page_needs_no_network(tmp_path: Path) -> None:
    page = page_of(write_search(tmp_path, 6), tmp_path)
    assert not re.search(r"https?:|//[a-z]", page)
    for tag, attributes in read_html(page).tags:
        assert tag not in {"link", "img", "iframe", "object", "form", "base"}
        assert "src" not in attributes
        if tag == "a":
            assert str(attributes["href"]).startswith("./trial-")
    (policy,) = (attributes["content"] for tag, attributes in read_html(page).tags if "http-equiv" in attributes)
    assert str(policy).startswith("default-src 'none';")
    assert "sendChartToCloud" in page  # among the buttons that are left out
    assert page.index("modeBarButtonsToRemove") < page.index("sendChartToCloud")


def test_no_text_of_anyone_becomes_markup(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    tags = [tag for tag, _ in read_html(page_of(write_search(plain, 20), plain)).tags]
    page = page_of(write_search(tmp_path, 20, suffix=HOSTILE), tmp_path)
    reader = read_html(page)
    assert [tag for tag, _ in reader.tags] == tags
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert HOSTILE.strip() in " ".join(reader.texts)
    # What Plotly takes for HTML is escaped once more: `<b>` would be bold, `<a href>` a link.
    for traces in figures(page).values():
        for trace in traces:
            shown = [trace.get("name", ""), trace.get("text", ""), *trace.get("hovertext", [])]
            shown += [axis["label"] for axis in trace.get("dimensions", [])]
            assert not [text for text in shown if re.search(r"<(?!br>)", str(text))]


def test_a_folder_with_any_name_is_a_link_below_the_page(tmp_path: Path) -> None:
    record = write_search(tmp_path, 1)
    (trial,) = record.trials
    for out in ("javascript:alert(1)", 'a"b', "//host/x", "é"):
        renamed = msgspec.structs.replace(record, trials=(msgspec.structs.replace(trial, out=out),))
        links = [attributes["href"] for tag, attributes in read_html(page_of(renamed, tmp_path)).tags if tag == "a"]
        assert len(links) == 1
        assert re.fullmatch(r"\./[A-Za-z0-9%./_-]+/", str(links[0]))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_report_of_few_trials_says_what_it_cannot_show(tmp_path: Path, count: int) -> None:
    page = page_of(write_search(tmp_path, count), tmp_path)
    text = " ".join(read_html(page).texts)
    assert "It takes 5 trials with different objectives." in text
    assert ("No trial has an objective." in text) == (count == 0)


def test_a_report_of_trials_without_an_objective_lists_them(tmp_path: Path) -> None:
    record = write_search(tmp_path, 5)
    trials = tuple(msgspec.structs.replace(each, objective=None, status="Failed") for each in record.trials)
    page = page_of(msgspec.structs.replace(record, trials=trials, best=None), tmp_path)
    assert list(figures(page)) == ["curves"]
    assert "no trial has an objective" in page
    assert sum(tag == "tr" for tag, _ in read_html(page).tags) == 6


def test_a_job_record_that_is_missing_or_damaged_costs_its_curve_alone(tmp_path: Path) -> None:
    record = write_search(tmp_path, 4)
    (tmp_path / record.trials[0].out / "job.json").unlink()
    (tmp_path / record.trials[1].out / "job.json").write_text('{"job_name": 3}')
    curves = read_curves(tmp_path, record)
    assert sorted(curves.metrics[OBJECTIVE]) == [3]  # the fourth has failed
    assert list(curves.problems) == [2]
    assert "is no record of a job" in page_of(record, tmp_path)


def test_a_report_of_500_trials_is_small_and_has_them_all(tmp_path: Path) -> None:
    page = page_of(write_search(tmp_path, 500, steps=2000), tmp_path)
    assert len(page) < 6_000_000
    assert sum(tag == "tr" for tag, _ in read_html(page).tags) == 501


def test_values_that_are_not_numbers_and_points_outside_the_ranges_are_left_out(tmp_path: Path) -> None:
    record = write_search(tmp_path, 12)
    odd = [
        msgspec.structs.replace(record.trials[0], objective=math.nan),
        msgspec.structs.replace(record.trials[1], objective=math.inf),
        msgspec.structs.replace(record.trials[2], values={**record.trials[2].values, "eta": "fast"}),
        msgspec.structs.replace(record.trials[4], values={}),
    ]
    record = msgspec.structs.replace(record, trials=(*odd, *record.trials[5:]))
    page = page_of(record, tmp_path)
    drawn = figures(page)
    known = [each for each in record.trials[2:] if each.objective is not None]
    assert len(drawn["objective"][0]["x"]) == len(known)
    assert len(drawn["parallel-coordinates"][0]["dimensions"][0]["values"]) == len(known) - 2


def test_importance_finds_the_hyperparameter_that_decides() -> None:
    chance = random.Random(0)
    ranges = (
        ContinuousRange("decides", 0.001, 1, scaling="Logarithmic"),
        ContinuousRange("near_one", 0.5, 0.99, scaling="ReverseLogarithmic"),
        IntegerRange("does_not", 1, 9),
        CategoricalRange("kind", ("a", "b")),
    )
    trials = []
    for number in range(1, 41):
        decides = 10 ** chance.uniform(-3, 0)
        values = {
            "decides": repr(decides),
            "near_one": repr(chance.uniform(0.5, 0.99)),
            "does_not": str(chance.randint(1, 9)),
            "kind": chance.choice("ab"),
        }
        trials.append(TrialRecord(number, "", "", values, "Completed", abs(math.log10(decides) + 1.5)))
    record = TuningRecord(
        version=1,
        name="known",
        program="",
        strategy="Random",
        objective=Objective("loss", "Minimize", "x"),
        ranges=ranges,
        static={},
        channels={},
        max_trials=40,
        max_parallel=1,
        seed=0,
        early_stopping=False,
        trials=tuple(trials),
    )
    shares = rank_importance(record)
    assert next(iter(shares)) == "decides"
    assert shares["decides"] > 0.6
    assert sum(shares.values()) == pytest.approx(1)
    same = tuple(msgspec.structs.replace(trial, objective=1.0) for trial in trials)
    assert rank_importance(msgspec.structs.replace(record, trials=same)) == {}
    assert rank_importance(msgspec.structs.replace(record, trials=tuple(trials[:4]))) == {}


@pytest.mark.process
def test_a_report_loads_no_library_that_it_does_not_use(tmp_path: Path) -> None:
    record = write_search(tmp_path, 20)
    assert rank_importance(record), "enough trials for all figures"
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import msgspec\n"
        "from trainbox.tuning.records import TuningRecord\n"
        "from trainbox.tuning.report.write_report import write_report\n"
        "write_report(msgspec.json.decode(sys.stdin.buffer.read(), type=TuningRecord), Path(sys.argv[1]))\n"
        "print(sorted({'plotly', 'pandas', 'scipy', 'sklearn', 'torch'} & {*sys.modules}))"
    )
    argv = [sys.executable, "-P", "-c", code, str(tmp_path)]
    done = subprocess.run(argv, input=msgspec.json.encode(record), capture_output=True, check=True)
    assert done.stdout == b"['plotly']\n"


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (ContinuousRange("x", 0.001, 1.0, scaling="Logarithmic"), ("0.001", "0.03", "1.0")),
        (ContinuousRange("x", 0.0, 0.999, scaling="ReverseLogarithmic"), ("0.0", "0.99", "0.999")),
        (ContinuousRange("x", -1.0, 1.0), ("-1.0", "0.0", "1.0")),
        (IntegerRange("x", 1, 3), ("1", "2", "3")),
        (CategoricalRange("x", ("a", "b", "c")), ("a", "b", "c")),
    ],
)
def test_an_axis_has_its_values_in_order_between_its_ends(given: Any, texts: tuple[str, ...]) -> None:
    axis = parameter_axis(given, texts)
    assert axis.ends[0] == pytest.approx(axis.values[0])
    assert axis.ends[1] == pytest.approx(axis.values[-1])
    assert axis.values == tuple(sorted(axis.values))
    assert axis.tick_texts[0] in {"0.001", "0", "-1", "1", "a"}
    assert len(axis.ticks) == len(axis.tick_texts)


def test_an_axis_of_one_value_has_room() -> None:
    assert parameter_axis(IntegerRange("x", 3, 3), ["3"]).ends == (2.97, 3.03)
    assert parameter_axis(CategoricalRange("x", ("a",)), ["a"]).ends == (-1.0, 1.0)
    assert number_axis("y", [0.0]).ends == (-1.0, 1.0)


def test_a_curve_is_thinned_to_what_is_finite_with_both_ends() -> None:
    curve = Curve(tuple(range(1000)), tuple(math.nan if step == 500 else step / 10 for step in range(1000)))
    few = thin(curve, 50)
    assert len(few.steps) == 50
    assert (few.steps[0], few.steps[-1]) == (0, 999)
    assert all(math.isfinite(value) for value in few.values)
    assert thin(Curve((1,), (2.0,)), 50) == Curve((1,), (2.0,))


def test_the_same_search_gives_the_same_page(tmp_path: Path) -> None:
    record = write_search(tmp_path, 8)
    curves = read_curves(tmp_path, record)
    assert write_page(record, curves, {"eta": 1.0}) == write_page(record, curves, {"eta": 1.0})


def test_a_report_that_cannot_be_written_is_an_error_with_its_place(tmp_path: Path) -> None:
    record = write_search(tmp_path / "gone", 1)
    with pytest.raises(RunError, match=r"report\.html cannot be written"):
        write_report(record, tmp_path / "nowhere")
