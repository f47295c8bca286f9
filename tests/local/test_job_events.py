"""What hosts write becomes events: whole lines, metrics by our own lines and by definition, findings, notes."""

import itertools
import time
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.contract.job_spec import MetricDefinition
from trainbox.diagnostics.finding import Finding
from trainbox.local.metrics.curves import Curves
from trainbox.local.metrics.defined_metrics import LONGEST_SEARCHED, DefinedMetrics, can_explode, refuse
from trainbox.local.results.record import Curve
from trainbox.local.run_events.events import (
    Event,
    FindingReported,
    LinesWritten,
    MetricLogged,
    NoteGiven,
    StatusChanged,
)
from trainbox.local.run_events.job_events import JobEvents

#: As AWS's own documentation and SDK have them.
_REAL = (
    r".*\[[0-9]+\].*#011validation-auc:([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?).*",
    "Train Loss: (.*?);",
    r"'eval_loss': ([0-9]+\.[0-9]+)",
    "#quality_metric: host=\\S+, epoch=\\S+, train loss <loss>=(\\S+)",
    r"val_accuracy=(\d+(?:\.\d+)?)",
)


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)


def hear(
    *writes: bytes, definitions: Sequence[MetricDefinition] = (), curves: Curves | None = None
) -> tuple[list[Event], Curves]:
    heard, found = Heard(), curves or Curves()
    events = JobEvents(heard, ["algo-1", "algo-2"], found, definitions)
    for data in writes:
        events.output("algo-1", data)
    events.close()
    return heard.events, found


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_lines_are_told_whole_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(places)]
    told = [event.data for event in hear(*pieces)[0] if isinstance(event, LinesWritten)]
    assert b"".join(told) == data
    assert all(each.endswith(b"\n") for each in told[:-1])


def test_a_line_without_an_end_is_told_in_pieces() -> None:
    told = [event.data for event in hear(*[b"x" * 300_000] * 5)[0] if isinstance(event, LinesWritten)]
    assert [len(each) for each in told] == [1_200_000, 300_000]


def test_lines_as_text_have_no_newlines() -> None:
    assert LinesWritten("algo-1", b"a\n\nb\rc\xff\n").lines == ("a", "", "b\rc\ufffd")


def test_our_own_metric_lines_are_told_with_their_steps() -> None:
    events, curves = hear(b"[metrics] step=3 loss=0.5\n[metrics] final loss=0.25\n")
    logged = [event for event in events if isinstance(event, MetricLogged)]
    assert logged == [MetricLogged("algo-1", "loss", 0.5, 3), MetricLogged("algo-1", "loss", 0.25, None)]
    assert (curves.all(), curves.final) == ({"loss": Curve((3,), (0.5,))}, {"loss": 0.25})


def test_a_metric_by_definition_is_found_in_any_line_and_its_steps_are_counted() -> None:
    definitions = [MetricDefinition(name="acc", regex=r"acc(?:uracy)?=([0-9.]+)")]
    events, curves = hear(b"epoch 1 accuracy=0.5\nno\nepoch 2 acc=0.75", definitions=definitions)
    assert [event for event in events if isinstance(event, MetricLogged)] == [
        MetricLogged("algo-1", "acc", 0.5, 0),
        MetricLogged("algo-1", "acc", 0.75, 1),
    ]
    assert curves.all() == {"acc": Curve((0, 1), (0.5, 0.75))}
    later = hear(b"acc=1\n", definitions=definitions, curves=Curves({"acc": 2}))[1]
    assert later.all() == {"acc": Curve((2,), (1.0,))}, "the next attempt goes on counting"


def test_a_metric_that_our_line_and_a_definition_both_find_counts_once() -> None:
    definitions = [MetricDefinition(name="loss", regex=r"loss=([0-9.]+)"), MetricDefinition(name="l", regex="ss=(.)")]
    _, curves = hear(b"[metrics] step=7 loss=0.5\n", definitions=definitions)
    assert curves.all() == {"loss": Curve((7,), (0.5,)), "l": Curve((0,), (0.0,))}


@pytest.mark.parametrize("text", ["acc=nan", "acc=x", "acc=", "acc=1e999"])
def test_what_is_no_finite_number_is_no_value(text: str) -> None:
    assert hear(f"{text}\n".encode(), definitions=[MetricDefinition(name="acc", regex="acc=(.*)")])[1].all() == {}


def test_a_metric_far_behind_in_a_line_is_not_found_and_that_is_told_once() -> None:
    said: list[str] = []
    defined = DefinedMetrics([MetricDefinition(name="acc", regex="acc=([0-9]+)")], said.append)
    for _ in range(2):
        assert list(defined.find("x" * LONGEST_SEARCHED + "acc=1")) == []
    assert said == ["metrics are searched for in the first 2,000 characters of a line"]


@pytest.mark.parametrize("regex", _REAL)
def test_expressions_as_people_write_them_are_searched_in_time_that_a_line_bounds(regex: str) -> None:
    assert refuse(regex) == ""
    said: list[str] = []
    defined = DefinedMetrics([MetricDefinition(name="m", regex=regex)], said.append, clock=time.process_time)
    for hostile in ("[0]" * 10_000, "[0" * 10_000, "0" * 10_000, "Train Loss: " * 1_000, "host=," * 2_000):
        list(defined.find(hostile))
    assert defined, "each took less than a second"


@pytest.mark.parametrize(
    "regex",
    ["(a+)+b", "(?:a|ab)*c(.)", "(a?)*", "(a{2,3}){4}", "((?:a+)?)*", "(?P<value>a+)+", r"(\(a+\)x)*", "([(]a+)+"],
)
def test_an_expression_whose_time_can_double_with_each_character_is_not_searched(regex: str) -> None:
    assert can_explode(regex)
    events, curves = hear(b"a" * 60 + b"\n", definitions=[MetricDefinition(name="m", regex=regex)])
    (note,) = [event.text for event in events if isinstance(event, NoteGiven)]
    assert note.startswith(f"metric 'm' is not recorded: its regular expression {regex!r} repeats a group")
    assert curves.all() == {}


@pytest.mark.parametrize(
    ("regex", "line", "value"),
    [(".*m=([0-9])", "m=1 m=2", 2), (".*?m=([0-9])", "m=1 m=2", 1), ("m=(.)", "m=1 m=2", 1), (".*x|m=(.)", "m=3", 3)],
)
def test_an_expression_finds_what_a_search_finds(regex: str, line: str, value: float) -> None:
    found = list(DefinedMetrics([MetricDefinition(name="m", regex=regex)], pytest.fail).find(line))
    assert [each.value for each in found] == [value]


@pytest.mark.parametrize(
    "regex", ["(ab)+(c)", r"\(a+\)+(x)", "[(+]+(x)", "(?:a+)?b(c)", "(?i)a+(b)", "(?=a+)(b)", "a{,3}(b)", "(a|b)"]
)
def test_an_expression_that_only_looks_alike_is_searched(regex: str) -> None:
    assert not can_explode(regex)


@pytest.mark.parametrize(("regex", "said"), [("(a", "malformed"), ("loss=.*", r"has no group \(…\)")])
def test_an_expression_that_finds_no_value_is_told(regex: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        assert not refuse(regex), refuse(regex)


def test_an_expression_that_is_slow_all_the_same_is_given_up() -> None:
    moments = iter([0.0, 1.5])
    said: list[str] = []
    defined = DefinedMetrics([MetricDefinition(name="m", regex="(a)")], said.append, clock=lambda: next(moments))
    list(defined.find("a"))
    assert said == ["metric 'm' is not recorded any more: its regular expression took more than 1 s for one line"]
    assert not defined


def test_a_finding_of_a_health_check_is_told_as_one() -> None:
    finding = Finding("gpu_count", "algo-1", "", "fail", 7, 8, "hardware", hint="replace the node")
    line = msgspec.json.encode(finding) + b"\n"
    events, _ = hear(line, b'{"check":"mine","x":1}\n')
    assert [event for event in events if isinstance(event, FindingReported)] == [FindingReported("algo-1", finding)]


def test_hosts_beside_one_that_has_failed_are_no_job_that_is_stopped() -> None:
    heard = Heard()
    events = JobEvents(heard, ["algo-1"], Curves(), ())
    events.stopping("failure")
    assert heard.events == []
    events.stopping("stop-after")
    assert heard.events == [StatusChanged("Stopping", "Stopping")]
