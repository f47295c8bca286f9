"""Metrics: what is logged is read back exactly, and nothing else is."""

import doctest
import io
import itertools
import json
import math
import os
import re
import shutil
import string
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trainbox import metrics
from trainbox.errors import MetricError
from trainbox.metrics import Metric, MetricSummary, Sample

AUC = Metric("auc", "maximize")
VAL_AUC = Metric("val_auc", "maximize")
TRAIN_AUC = Metric("train:auc", "maximize")
LOSS = Metric("loss", "minimize")

FIRST = string.ascii_letters + string.digits + "_"
names = st.builds(
    str.__add__, st.sampled_from(FIRST), st.text(alphabet=FIRST + ":.@/+-", max_size=12)
) | st.sampled_from(
    ["auc", "val_auc", "train:auc", "auc:train", "auc.x", "aucxx", "step", "final", "1", "1e5", "a+", "a"]
)
declared = st.builds(Metric, names, st.sampled_from(["maximize", "minimize"]))
several = st.lists(declared, min_size=1, max_size=6, unique_by=lambda metric: metric.name)
finite = st.floats(allow_nan=False, allow_infinity=False)
steps = st.integers(min_value=0, max_value=10**12)


def found(metric: Metric, text: str) -> str | None:
    match = re.search(metric.regex, text)
    return match[1] if match else None


@given(several, st.data(), steps | st.none())
def test_each_regex_finds_exactly_the_float_that_was_logged(
    logged: list[Metric], data: st.DataObject, step: int
) -> None:
    values = {metric: data.draw(finite, label=metric.name) for metric in logged}
    text = metrics.final_line(values) if step is None else metrics.line(step, values)
    for metric, value in values.items():
        assert found(metric, text) == repr(value)
        assert found(metric, f"algo-1 | {text}\r\n") == repr(value)
    assert metrics.parse_line(text) == Sample(step, {metric.name: value for metric, value in values.items()})


@pytest.mark.parametrize("value", [-0.5, 1e-05, 1e20, 5e-324, -1.7976931348623157e308, -0.0, 0.1 + 0.2, 100.0])
def test_floats_in_every_notation_are_found(value: float) -> None:
    assert found(AUC, metrics.line(3, {AUC: value})) == repr(value)


@given(several, declared, st.data())
def test_a_metric_that_was_not_logged_is_found_nowhere(
    logged: list[Metric], absent: Metric, data: st.DataObject
) -> None:
    assume(absent.name not in {metric.name for metric in logged})
    text = metrics.line(data.draw(steps), {metric: data.draw(finite) for metric in logged})
    assert found(absent, text) is None


def test_names_that_end_or_begin_with_another_name_are_kept_apart() -> None:
    family = [Metric(name, "maximize") for name in ("auc", "val_auc", "train:auc", "auc:train", "auc.1", "aucx1", "x")]
    for logged, asked in itertools.permutations(family, 2):
        assert found(asked, metrics.line(1, {logged: 0.5})) is None
        assert found(asked, metrics.line(1, {logged: 0.25, asked: 0.5})) == "0.5"
        assert found(asked, metrics.line(1, {asked: 0.5, logged: 0.25})) == "0.5"


def test_a_metric_called_step_is_not_the_step() -> None:
    step = Metric("step", "minimize")
    assert found(step, metrics.line(7, {LOSS: 1.0})) is None
    assert found(step, metrics.line(7, {step: 1.0})) == "1.0"


@given(declared, st.text(max_size=200))
def test_ordinary_lines_are_never_read(metric: Metric, text: str) -> None:
    assume("[metrics] " not in text)
    assert found(metric, text) is None
    assert metrics.parse_line(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "auc=0.5",
        "step=5 auc=0.5",
        "metrics step=5 auc=0.5",
        "[metrics] auc=0.5",
        "[metrics] step=x auc=0.5",
        "[metrics] step=5 epoch 3: auc=0.5%",
        "[metrics] step=5, auc=0.5",
        "[metrics] step=5\tauc=0.5",
        "[metrics] step=5 (auc=0.5)",
        "[metrics] step=5 auc = 0.5",
        "[metrics] step=5 auc=0.5, loss=1",
        "[metrics] step=5 auc=0.5.1",
        "[metrics] step=5 auc=.5",
        "[metrics] step=5 auc=5.",
        "[metrics] step=5 auc=1e",
        "[metrics] step=5 auc=0x1p3",
        "[metrics] step=5 auc=nan",
        "[metrics] step=5 auc=inf",
        "[metrics] step=5 auc=٣.٤",
        "[metrics] step=٣ auc=0.5",
        "[metrics] step=5 auc=",
        "[metrics] finally auc=0.5",
        "[Metrics] step=5 auc=0.5",
    ],
)
def test_a_line_that_only_resembles_the_format_is_not_read(text: str) -> None:
    assert found(AUC, text) is None
    sample = metrics.parse_line(text)
    assert sample is None or "auc" not in sample.values


@given(st.text(alphabet='[metrics] step=1final aucloss.e-5"\t\n', max_size=60), st.booleans())
def test_parse_line_reads_a_number_where_the_regexes_read_one(text: str, is_final: bool) -> None:
    hostile = f"[metrics] {'final' if is_final else 'step=12'} {text.replace('[', '')}"
    sample = metrics.parse_line(hostile)
    assert sample is not None
    for metric in (AUC, LOSS, Metric("a", "maximize"), Metric("1", "maximize"), Metric("l", "maximize")):
        hit = found(metric, hostile)
        assert sample.values.get(metric.name) == (None if hit is None else float(hit))


@given(several, st.sampled_from([math.nan, math.inf, -math.inf]), steps)
def test_values_that_are_not_finite_are_logged_in_words_that_no_regex_reads(
    logged: list[Metric], value: float, step: int
) -> None:
    text = metrics.line(step, dict.fromkeys(logged, value))
    assert [found(metric, text) for metric in logged] == [None] * len(logged)
    assert metrics.parse_line(text) == Sample(step, {})


def test_not_finite_values_read_as_words_and_leave_their_neighbours_readable() -> None:
    values = {AUC: math.nan, LOSS: math.inf, VAL_AUC: -math.inf, TRAIN_AUC: 0.5}
    text = metrics.line(1, values)
    assert text == "[metrics] step=1 auc=not-a-number loss=infinite val_auc=-infinite train:auc=0.5"
    assert metrics.parse_line(text) == Sample(1, {"train:auc": 0.5})
    assert metrics.warnings(values) == (
        "metric 'auc' is nan: logged as 'not-a-number', which SageMaker does not read",
        "metric 'loss' is inf: logged as 'infinite', which SageMaker does not read",
        "metric 'val_auc' is -inf: logged as '-infinite', which SageMaker does not read",
    )
    assert metrics.warnings({TRAIN_AUC: 0.5}) == ()


def test_the_lines_are_written_as_documented() -> None:
    values = {TRAIN_AUC: 0.86597, Metric("validation:auc", "maximize"): 0.84081}
    assert metrics.line(5, values) == "[metrics] step=5 train:auc=0.86597 validation:auc=0.84081"
    assert metrics.final_line({AUC: 1}) == "[metrics] final auc=1.0"


def test_a_line_cut_by_another_writer_gives_the_number_of_the_whole_one() -> None:
    assert found(AUC, "[metrics] step=1 auc=0.[metrics] step=2 auc=0.25") == "0.25"


def test_a_number_is_whatever_converts_to_one_float() -> None:
    class Tensor:
        def __float__(self) -> float:
            return 0.25

    class Step:
        def __index__(self) -> int:
            return 7

    assert metrics.line(Step(), {AUC: Tensor(), LOSS: True}) == "[metrics] step=7 auc=0.25 loss=1.0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "cannot be logged"),
        ("a b", "metric name 'a b' cannot be logged"),
        (":auc", "cannot be logged"),
        ("auc=", "cannot be logged"),
        ("auc\n", "cannot be logged"),
        ("[auc]", "cannot be logged"),
        ("précision", "cannot be logged"),
        (None, "metric name None cannot be logged"),
        ("a" * 201, "has 201 characters"),
        ("a" + "." * 199, "needs a regex of "),
    ],
)
def test_a_name_that_could_not_be_read_back_is_refused(name: str, message: str) -> None:
    with pytest.raises(MetricError, match=re.escape(message)):
        Metric(name, "maximize")


@given(st.text(alphabet=FIRST + ":.@/+-", min_size=1, max_size=200))
def test_every_name_gives_a_regex_within_the_limit_or_an_error(name: str) -> None:
    try:
        metric = Metric(name, "maximize")
    except MetricError:
        assert name[0] not in FIRST or name.count(".") + name.count("+") > 100
    else:
        assert len(metric.regex) <= 500
        assert re.compile(metric.regex).groups == 1


def test_a_goal_is_maximize_or_minimize() -> None:
    with pytest.raises(MetricError, match=r"metric 'auc' has the goal 'max'\n  hint: use 'maximize' or 'minimize'"):
        Metric("auc", "max")  # type: ignore[arg-type]  # what a script without a type checker does


def test_a_metric_is_a_frozen_value() -> None:
    assert {AUC: 1}[Metric("auc", "maximize")] == 1
    with pytest.raises(AttributeError):
        AUC.name = "b"  # type: ignore[misc]  # that is what the test is about


@pytest.mark.parametrize(
    ("step", "values", "message"),
    [
        (1, {}, "no metric to log"),
        (1, {"auc": 0.5}, "'auc' is logged but not declared as a metric"),
        (1, {AUC: "0.5"}, "metric 'auc' has the value '0.5', expected a number"),
        (1, {AUC: None}, "metric 'auc' has a value of type NoneType, expected one number"),
        (1, {AUC: [1.0]}, "metric 'auc' has a value of type list, expected one number"),
        (1, {AUC: 10**400}, "metric 'auc' has a value of type int, expected one number"),
        (1, {AUC: 0.5, Metric("auc", "minimize"): 0.5}, "the same metric twice in one line"),
        (1.5, {AUC: 0.5}, "step 1.5 is not a whole number"),
        ("1", {AUC: 0.5}, "step '1' is not a whole number"),
        (-1, {AUC: 0.5}, "step -1 is out of range"),
        (10**18, {AUC: 0.5}, "step 1000000000000000000 is out of range"),
    ],
)
def test_what_cannot_be_logged_is_an_error_that_names_it(step: int, values: dict[Metric, float], message: str) -> None:
    with pytest.raises(MetricError, match=re.escape(message)):
        metrics.line(step, values)


def test_definitions_are_what_sagemaker_takes() -> None:
    many = [Metric(f"m{number}", "maximize") for number in range(40)]
    listed = metrics.definitions(many)
    assert json.loads(json.dumps(listed)) == [{"Name": metric.name, "Regex": metric.regex} for metric in many]
    with pytest.raises(MetricError, match="41 metrics are declared; SageMaker takes 40"):
        metrics.definitions([*many, AUC])
    with pytest.raises(MetricError, match="declared more than once: 'auc'"):
        metrics.definitions([AUC, LOSS, Metric("auc", "minimize")])


def test_check_says_what_each_regex_finds_and_which_lines_none_reads() -> None:
    log = [
        "an ordinary line\n",
        metrics.line(0, {AUC: 0.5, LOSS: 2.0}) + "\n",
        metrics.line(1, {AUC: 0.75, LOSS: 1.0}) + "\n",
        "[metrics] step=2\tauc=0.9\n",
        metrics.line(2, {TRAIN_AUC: 0.9}) + "\n",
        metrics.line(3, {AUC: math.nan}) + "\n",
        metrics.final_line({AUC: 0.625}) + "\n",
    ]
    result = metrics.check([AUC, LOSS, VAL_AUC], log)
    assert result.findings == (
        MetricSummary(AUC, count=3, first=0.5, last=0.625, best=0.75),
        MetricSummary(LOSS, count=2, first=2.0, last=1.0, best=1.0),
        MetricSummary(VAL_AUC, count=0),
    )
    assert result.undeclared == ("train:auc",)
    assert result.unread_count == 2, "a line with other metrics is read once those are declared"
    assert [(each.number, each.text) for each in result.unread] == [
        (4, "[metrics] step=2\tauc=0.9"),
        (6, "[metrics] step=3 auc=not-a-number"),
    ]


def test_check_keeps_ten_unread_lines_and_counts_the_rest() -> None:
    result = metrics.check([AUC], ["[metrics] nothing"] * 1000)
    assert (result.unread_count, len(result.unread)) == (1000, 10)


HOSTILE = {
    "headers": "[metrics] step=1 " * 6000,
    "openings": "[" * 100_000,
    "almost": "[metrics] step=1" + " auc=1" * 16_000 + "x",
    "unended": "[metrics] step=1" + " auc=1x" * 14_000,
    "digits": "[metrics] step=1 auc=" + "1" * 100_000 + "x",
    "step": "[metrics] step=" + "1" * 100_000,
    "spaces": "[metrics] step=1 " + " " * 100_000,
    "signs": "[metrics] step=1 " + "auc=" * 25_000,
    "dots": "[metrics] step=1 auc=" + "1." * 50_000,
    "cut": "[metrics] step=1 auc=1" * 4500,
    "exponents": "[metrics] step=1" + " auc=1.1e" * 11_000,
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_line_of_100_kb_takes_no_time(hostile: str) -> None:
    began = time.process_time()
    for _ in range(5):
        found(AUC, HOSTILE[hostile])
        metrics.parse_line(HOSTILE[hostile])
    # Some milliseconds each; a regex that is quadratic in the length needs minutes.
    assert (time.process_time() - began) / 10 < 0.5


def test_parsing_two_hundred_thousand_lines_takes_a_moment() -> None:
    text = metrics.line(5, {TRAIN_AUC: 0.86597, AUC: 0.84081})
    began = time.process_time()
    for _ in range(100_000):
        metrics.parse_line(text)
        metrics.parse_line("2026-01-01 an ordinary line of a log, epoch 3 auc=0.5")
    assert time.process_time() - began < 5  # about 0.3 s


@pytest.mark.process
def test_emit_writes_a_line_in_one_write_after_what_was_printed_before() -> None:
    script = (
        "import os, sys\n"
        "from trainbox import metrics\n"
        "write, writes = os.write, []\n"
        "os.write = lambda fd, data: writes.append(bytes(data)) or write(fd, data)\n"
        "print('before', end=' ')\n"
        "metrics.emit('[metrics] final auc=1.0')\n"
        "print('after', writes)\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=300, env=env)
    assert done.stdout == b"before [metrics] final auc=1.0\nafter [b'[metrics] final auc=1.0\\n']\n"


@pytest.mark.process
def test_lines_of_concurrent_writers_are_never_cut() -> None:
    script = (
        "import sys\nfrom trainbox import metrics\n"
        "for step in range(500): metrics.emit(f'[metrics] step={step} {sys.argv[1]}=' + '1' * 200 + '.5')\n"
    )
    reading, writing = os.pipe()
    writers = [subprocess.Popen([sys.executable, "-c", script, name], stdout=writing) for name in ("a", "b", "c")]
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123 - a descriptor, no path
        lines = pipe.read().splitlines()
    assert [writer.wait(timeout=300) for writer in writers] == [0, 0, 0]
    assert len(lines) == 1500
    assert all(re.fullmatch(rb"\[metrics\] step=\d+ [abc]=1{200}\.5", each) for each in lines)


def test_emit_prints_to_a_stdout_that_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = io.StringIO()
    monkeypatch.setattr(sys, "stdout", captured)
    metrics.emit("[metrics] final auc=1.0")
    assert captured.getvalue() == "[metrics] final auc=1.0\n"


JAVA = """
import java.nio.file.*; import java.util.*; import java.util.regex.*;
public class Finds {
  public static void main(String[] paths) throws Exception {
    List<String> lines = Files.readAllLines(Path.of(paths[0]));
    for (int i = 0; i + 1 < lines.size(); i += 2) {
      Matcher matcher = Pattern.compile(lines.get(i)).matcher(lines.get(i + 1));
      System.out.println(matcher.find() ? matcher.group(1) : "None");
    }
  }
}
"""


@pytest.mark.process
@pytest.mark.skipif(shutil.which("javac") is None, reason="needs a JDK")
def test_java_reads_what_python_reads(tmp_path: Path) -> None:
    family = [Metric(name, "maximize") for name in ("auc", "val_auc", "train:auc", "a.b+c/d@e-f", "step", "1e5")]
    values = [0.5, -1e-05, 1e20, 5e-324, math.nan, math.inf]
    logged = [metrics.line(5, dict(zip(family, turn, strict=True))) for turn in itertools.permutations(values)][::7]
    pairs = [(metric, text) for metric in family for text in (*logged, *HOSTILE.values())]
    (tmp_path / "Finds.java").write_text(JAVA)
    (tmp_path / "pairs").write_text("".join(f"{metric.regex}\n{text}\n" for metric, text in pairs))
    done = subprocess.run(
        ["java", "Finds.java", "pairs"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.splitlines() == [str(found(metric, text)) for metric, text in pairs]


@pytest.mark.process
def test_a_write_that_the_system_cuts_short_is_continued() -> None:
    script = (
        "import os\nfrom trainbox import metrics\n"
        "write = os.write\n"
        "os.write = lambda fd, data: write(fd, bytes(data)[:1000])\n"
        "metrics.emit('x' * 10_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=300)
    assert done.stdout == b"x" * 10_000 + b"\n"


def test_the_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(metrics).attempted >= 6
    assert doctest.testmod(metrics).failed == 0


def test_a_sample_can_be_written_as_json() -> None:
    assert msgspec.json.encode(Sample(1, {"auc": 0.5})) == b'{"step":1,"values":{"auc":0.5}}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["validation:auc", "auc"])
def test_an_objective_of_a_tuner_that_is_no_number_is_refused(name: str, value: float) -> None:
    auc, loss = metrics.Metric("validation:auc", "maximize"), metrics.Metric("train:auc", "maximize")
    with pytest.raises(MetricError, match=f"the objective of the tuning job, 'validation:auc', is {value!r}"):
        metrics.check_objective(name, {loss: 0.5, auc: value})
    metrics.check_objective(name, {loss: value, auc: 0.5})
    metrics.check_objective(None, {loss: value, auc: value})
    metrics.check_objective("validation:f1", {auc: value})
