"""Batch transform without a server: records, mini-batches, filters, joins, counts, and what SageMaker would refuse."""

import csv
import io
import itertools
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.errors import ContractError, DataError, RunError
from trainbox.local.endpoints.lines import split_cells
from trainbox.local.transform.answers import finish_batch, finish_stream, write_record
from trainbox.local.transform.options import (
    ExecutionParameters,
    TransformOptions,
    TransformPlan,
    batch_variables,
    check_options,
    make_plan,
    parse_execution_parameters,
)
from trainbox.local.transform.records import MB, MiniBatch, SplitType, make_batches, read_records
from trainbox.local.transform.run_transform import find_inputs

LINES = TransformOptions(content_type="text/csv", split="Line", assemble="Line")
JOIN = msgspec.structs.replace(LINES, join="Input")
NOTHING = ExecutionParameters()


def plan_of(options: TransformOptions, offered: ExecutionParameters = NOTHING, *, payload: int = 0) -> TransformPlan:
    plan = make_plan(options, offered)
    return msgspec.structs.replace(plan, max_payload_bytes=payload) if payload else plan


def batches(content: bytes, plan: TransformPlan) -> list[MiniBatch]:
    records = read_records(io.BytesIO(content), plan.split, plan.longest_record)
    write = lambda record: write_record(record, plan)  # noqa: E731
    return list(make_batches(records, plan.strategy, plan.max_payload_bytes, write))


def transform(content: bytes, answers: list[bytes], plan: TransformPlan) -> bytes:
    made = batches(content, plan)
    return b"".join(finish_batch(batch, answer, plan) for batch, answer in zip(made, answers, strict=True))


# ---- what is sent ----


@given(st.lists(st.text("ab1,", max_size=8), max_size=30), st.integers(10, 40), st.booleans())
def test_mini_batches_hold_every_record_once_in_order_and_as_many_as_fit(
    lines: list[str], payload: int, has_last_newline: bool
) -> None:
    content = "\n".join(lines).encode() + (b"\n" if has_last_newline else b"")
    made = batches(content, plan_of(LINES, payload=payload))
    assert b"".join(batch.body for batch in made) == content
    assert [record.number for batch in made for record in batch.records] == list(
        range(1, len(content.splitlines()) + 1)
    )
    assert all(len(batch.body) <= payload for batch in made)
    for one, following in itertools.pairwise(made):
        assert len(one.body) + len(following.records[0].content) > payload


def test_a_single_record_a_request_and_a_whole_input_a_request() -> None:
    single = msgspec.structs.replace(LINES, strategy="SingleRecord")
    assert [batch.body for batch in batches(b"1\n2\n3", plan_of(single))] == [b"1\n", b"2\n", b"3"]
    whole = TransformOptions(content_type="text/csv")
    assert [batch.body for batch in batches(b"1\n2\n3", plan_of(whole))] == [b"1\n2\n3"]
    assert batches(b"", plan_of(whole)) == batches(b"", plan_of(LINES)) == []


@pytest.mark.parametrize(("split", "hint"), [("Line", "raise --max-payload"), ("None", "set --split Line, or raise")])
def test_a_record_beyond_the_payload_limit_is_named(split: SplitType, hint: str) -> None:
    options = msgspec.structs.replace(LINES, split=split, assemble="None")
    with pytest.raises(DataError, match=r"record \d exceeds the payload limit") as caught:
        batches(b"1234\n" + b"5" * 20, plan_of(options, payload=10))
    assert hint in caught.value.hint


def test_the_payload_limit_is_that_of_what_is_sent_of_a_record() -> None:
    options = msgspec.structs.replace(JOIN, input_filter="$[1:]")
    (batch,) = batches(b"a long name,1,2\n", plan_of(options, payload=10))
    assert batch.body == b"1,2\n"
    with pytest.raises(DataError, match="record 1 exceeds"):
        batches(b"1,1234567890\n", plan_of(options, payload=10))


def frame(content: bytes, flag: int = 0) -> bytes:
    return struct.pack("<II", 0xCED7230A, flag << 29 | len(content)) + content + bytes(-len(content) % 4)


def test_frames_keep_their_padding_together_and_lose_it_alone_as_in_sagemaker() -> None:
    parts = [frame(b"abcde"), frame(b"fg", 1) + frame(b"h", 3), frame(b"")]
    options = TransformOptions(content_type="application/x-recordio-protobuf", split="RecordIO")
    (batch,) = batches(b"".join(parts), plan_of(options))
    assert (batch.body, len(batch.records)) == (b"".join(parts), 3)
    single = msgspec.structs.replace(options, strategy="SingleRecord")
    bodies = [batch.body for batch in batches(b"".join(parts), plan_of(single))]
    assert bodies == [b"abcde", b"fg" + struct.pack("<I", 0xCED7230A) + b"h", b""]


@pytest.mark.parametrize("content", [b"1,2\n3,4\n", frame(b"abcde")[:-1], frame(b"a", 1), frame(b"a", 3), b"\x0a\x23"])
def test_damaged_frames_are_named(content: bytes) -> None:
    options = TransformOptions(content_type="application/x-recordio-protobuf", split="RecordIO")
    with pytest.raises(DataError, match="record 1"):
        batches(content, plan_of(options))


# ---- filters and joins ----


def test_the_documented_example_of_csv_with_an_id_column() -> None:
    options = msgspec.structs.replace(JOIN, input_filter="$[1:]", output_filter="$[0,-1]")
    plan = plan_of(options)
    content = b'a-1,1,"2,5"\r\na-2,3,4\n'
    assert [batch.body for batch in batches(content, plan)] == [b'1,"2,5"\n3,4\n']
    assert transform(content, [b"0.5\n0.25\n"], plan) == b"a-1,0.5\na-2,0.25\n"


def test_a_csv_join_appends_the_answer_and_keeps_the_text_of_the_cells() -> None:
    assert transform(b'1.10," a ""b"""\n,x\n', [b'0.5,"[1, 2]"\n0.6,y'], plan_of(JOIN)) == (
        b'1.10," a ""b""",0.5,"[1, 2]"\n,x,0.6,y\n'
    )


def test_the_documented_examples_of_json_lines() -> None:
    options = msgspec.structs.replace(
        JOIN,
        content_type="application/jsonlines",
        input_filter="$.features",
        output_filter="$['id','SageMakerOutput']",
    )
    plan = plan_of(options)
    content = b'{"id": 1, "features": [1, 2.50]}\n{"features": [3], "id": 2}\n'
    assert [batch.body for batch in batches(content, plan)] == [b"[1,2.5]\n[3]\n"]
    answer = b'{"predicted_label": 1}\n{"predicted_label": 0}\n'
    assert [json.loads(line) for line in transform(content, [answer], plan).splitlines()] == [
        {"id": 1, "SageMakerOutput": {"predicted_label": 1}},
        {"id": 2, "SageMakerOutput": {"predicted_label": 0}},
    ]


def test_a_record_that_is_no_object_is_joined_under_a_key() -> None:
    options = msgspec.structs.replace(JOIN, content_type="application/jsonlines")
    assert transform(b"[1,2]\n", [b"0.5"], plan_of(options)) == b'{"SageMakerInput":[1,2],"SageMakerOutput":0.5}\n'
    assert transform(b'{"x":1}\n', [b"[0.5]"], plan_of(options)) == b'{"x":1,"SageMakerOutput":[0.5]}\n'


def test_a_whole_json_document_is_joined_without_a_split() -> None:
    options = TransformOptions(
        content_type="application/json", join="Input", input_filter="$.rows", output_filter="$.SageMakerOutput.p"
    )
    plan = plan_of(options)
    content = b'{"rows": [[1], [2]],\n "id": 5}'
    (batch,) = batches(content, plan)
    assert json.loads(batch.body) == [[1], [2]]
    assert finish_batch(batch, b'{"p": [0.1, 0.2]}', plan) == b"[0.1,0.2]"


def test_an_output_filter_without_a_join_selects_from_the_answer() -> None:
    options = msgspec.structs.replace(LINES, output_filter="$[0]")
    assert transform(b"1\n2\n", [b"1,0.9\n0,0.2\n"], plan_of(options)) == b"1\n0\n"


@pytest.mark.parametrize(
    ("content", "answer", "message"),
    [
        (b"1,2\n3\n", b"0\n1\n", r"row 2: \$\[1:\] asks for what 1 elements do not have"),
        (b'1,2\n3,"4\n', b"0\n1\n", "row 2: cell 2 has a quote that is not closed"),
    ],
)
def test_a_row_that_cannot_be_filtered_is_named(content: bytes, answer: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        transform(content, [answer], plan_of(msgspec.structs.replace(JOIN, input_filter="$[1:]")))


def test_an_answer_that_is_no_json_is_named_with_its_row() -> None:
    options = msgspec.structs.replace(JOIN, content_type="application/jsonlines")
    with pytest.raises(DataError, match="row 2: the answer 'nan' is no JSON"):
        transform(b"[1]\n[2]\n", [b"0.5\nnan\n"], plan_of(options))


@given(st.lists(st.lists(st.text('ab", \t', max_size=4), min_size=1, max_size=4), min_size=1, max_size=5))
def test_cells_joined_again_are_the_row(rows: list[list[str]]) -> None:
    for row in rows:
        quoted = [f'"{cell.replace(chr(34), chr(34) * 2)}"' if set(cell) & {'"', ","} else cell for cell in row]
        line = ",".join(quoted).encode()
        assert split_cells(line) == [cell.encode() for cell in quoted]


CELLS = st.text('ab0.", ', max_size=4)
PLACES = st.tuples(st.integers(-3, 2), st.integers(-3, 2))


@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=6),
    st.lists(CELLS, min_size=6, max_size=6),
    PLACES,
    PLACES,
    st.integers(40, 150),
)
def test_filters_and_joins_of_any_csv_are_those_of_its_cells(
    rows: list[tuple[str, ...]], labels: list[str], taken: tuple[int, int], kept: tuple[int, int], payload: int
) -> None:
    paths = {"input_filter": f"$[{taken[0]},{taken[1]}]", "output_filter": f"$[{kept[0]},{kept[1]}]"}
    plan = plan_of(msgspec.structs.replace(JOIN, **paths), payload=payload)
    content = write_csv(rows)
    made = batches(content, plan)
    assert read_csv(b"".join(batch.body for batch in made)) == [[row[place] for place in taken] for row in rows]
    given = write_csv([(label,) for label in labels[: len(rows)]]).splitlines(keepends=True)
    answers = [b"".join(given[record.number - 1] for record in batch.records) for batch in made]
    joined = [[*row, label] for row, label in zip(rows, labels, strict=False)]
    assert read_csv(transform(content, answers, plan)) == [[row[place] for place in kept] for row in joined]


def write_csv(rows: Sequence[Sequence[str]]) -> bytes:
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    return file.getvalue().encode()


def read_csv(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode())))


# ---- rows in, rows out ----


@pytest.mark.parametrize("answer", [b"0.5\n0.6\n", b"0.5\n0.6"])
def test_one_line_is_written_for_each_record_and_no_newline_is_doubled(answer: bytes) -> None:
    assert transform(b"1\n2\n", [answer], plan_of(LINES)) == b"0.5\n0.6\n"


@pytest.mark.parametrize(
    ("answer", "out"), [(b"", 0), (b"0.5", 1), (b"0.5,0.6\n", 1), (b"0\n1\n2\n3\n", 4), (b"0\n1\n2\n\n", 4)]
)
def test_another_number_of_lines_than_of_records_is_an_error_that_names_both(answer: bytes, out: int) -> None:
    with pytest.raises(DataError, match=rf"rows 1 to 3: rows in and rows out differ: 3 in, {out} out"):
        transform(b"1\n2\n3\n", [answer], plan_of(LINES))
    with pytest.raises(DataError, match="rows in and rows out differ"):
        transform(b"1\n2\n3\n", [answer], plan_of(JOIN))


def test_an_empty_line_of_the_input_is_suspected_first() -> None:
    with pytest.raises(DataError, match="3 in, 2 out") as caught:
        transform(b"1\n\n3\n", [b"0\n1\n"], plan_of(LINES))
    assert "a line of the input is empty" in caught.value.hint


def test_without_assembly_the_answers_are_written_as_they_come() -> None:
    options = TransformOptions(content_type="text/csv", split="Line", strategy="SingleRecord")
    assert transform(b"1\n2\n", [b'{"p": 1}', b"\x00\n\n"], plan_of(options)) == b'{"p": 1}\x00\n\n'
    whole = TransformOptions(content_type="text/csv", assemble="Line")
    assert transform(b"1\n2\n", [b"0.5\n0.6"], plan_of(whole)) == b"0.5\n0.6\n"


def test_a_stream_is_joined_line_by_line_and_counted_at_its_end() -> None:
    plan = plan_of(JOIN)

    def stream(content: bytes, answer: bytes) -> bytes:
        return b"".join(finish_stream(read_records(io.BytesIO(content), "Line", 0), io.BytesIO(answer), plan))

    assert stream(b"1\r\n2", b"0.5\n0.6\n") == b"1,0.5\n2,0.6\n"
    with pytest.raises(DataError, match="2 in, more than 2 out"):
        stream(b"1\n2\n", b"0\n0\n0\n")
    with pytest.raises(DataError, match="more than 1 in, 1 out"):
        stream(b"1\n2\n", b"0\n")


# ---- what is asked for, offered and refused ----


def test_the_jobs_own_values_win_over_the_servers_and_those_over_the_defaults() -> None:
    offered = parse_execution_parameters(
        b'{"MaxConcurrentTransforms": 8, "BatchStrategy": "SINGLE_RECORD", "MaxPayloadInMB": 5, "Other": 1}'
    )
    plan = plan_of(LINES)
    assert (plan.workers, plan.strategy, plan.max_payload_bytes) == (1, "MultiRecord", 6 * MB)
    plan = plan_of(LINES, offered)
    assert (plan.workers, plan.strategy, plan.max_payload_bytes) == (8, "SingleRecord", 5 * MB)
    own = msgspec.structs.replace(LINES, workers=2, strategy="MultiRecord", max_payload_mb=7)
    plan = plan_of(own, offered)
    assert (plan.workers, plan.strategy, plan.max_payload_bytes) == (2, "MultiRecord", 7 * MB)


def test_all_requests_at_the_same_time_have_at_most_100_mb() -> None:
    with pytest.raises(RunError, match="5 requests of 21 MB at the same time exceed 100 MB"):
        plan_of(msgspec.structs.replace(LINES, workers=5, max_payload_mb=21))
    offered = ExecutionParameters(max_concurrent_transforms=8, max_payload_in_mb=6)
    assert plan_of(msgspec.structs.replace(LINES, max_payload_mb=50), offered).workers == 2
    assert plan_of(msgspec.structs.replace(LINES, workers=50), offered).max_payload_bytes == 2 * MB
    assert plan_of(msgspec.structs.replace(LINES, workers=200, max_payload_mb=0)).workers == 200


def test_an_answer_to_execution_parameters_that_cannot_be_used_is_an_error() -> None:
    with pytest.raises(ContractError, match="/execution-parameters"):
        parse_execution_parameters(b'{"MaxPayloadInMB": "six"}')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TransformOptions(content_type="text/csv", strategy="SingleRecord"), "--strategy SingleRecord needs records"),
        (msgspec.structs.replace(LINES, content_type="text/csv; Header=present"), "only the first request of an input"),
        (msgspec.structs.replace(LINES, max_payload_mb=101), "--max-payload 101"),
        (msgspec.structs.replace(LINES, workers=0), "--workers 0"),
        (msgspec.structs.replace(JOIN, content_type="text/libsvm"), "text/libsvm cannot be filtered or joined"),
        (msgspec.structs.replace(JOIN, content_type=""), "an unknown content type cannot be"),
        (msgspec.structs.replace(JOIN, split="None"), "need lines"),
        (msgspec.structs.replace(JOIN, assemble="None"), "need lines"),
        (msgspec.structs.replace(JOIN, accept="application/json"), "records of text/csv cannot be joined with answers"),
        (msgspec.structs.replace(JOIN, accept="application/x-npy"), "answers of application/x-npy cannot be"),
        (msgspec.structs.replace(JOIN, output_filter="$.SageMakerOutput"), "does not select cells"),
        (msgspec.structs.replace(LINES, input_filter="1:"), "does not begin with"),
    ],
)
def test_what_sagemaker_would_refuse_or_fail_at_is_refused_before_anything_starts(
    options: TransformOptions, message: str
) -> None:
    with pytest.raises(RunError, match=message):
        check_options(options)


def test_answers_are_asked_for_in_the_format_of_the_records_where_they_are_joined() -> None:
    assert plan_of(LINES).accept == ""
    assert plan_of(JOIN).accept == "text/csv"
    assert plan_of(msgspec.structs.replace(JOIN, accept="text/csv; charset=utf-8")).accept == "text/csv; charset=utf-8"


def test_the_container_is_told_what_the_request_sets_and_nothing_else() -> None:
    assert batch_variables(LINES) == {"SAGEMAKER_BATCH": "true"}
    options = msgspec.structs.replace(LINES, strategy="SingleRecord", max_payload_mb=0, workers=3)
    assert batch_variables(options) == {
        "SAGEMAKER_BATCH": "true",
        "SAGEMAKER_BATCH_STRATEGY": "SINGLE_RECORD",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "0",
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "3",
    }


# ---- which files ----


def test_every_file_of_a_directory_keeps_its_path(tmp_path: Path) -> None:
    for name in ("b.csv", "day/a.csv", "day/deep/c"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "link.csv").symlink_to("b.csv")
    targets = [each.target for each in find_inputs(tmp_path / "in", tmp_path / "out")]
    assert targets == [tmp_path / "out" / f"{name}.out" for name in ("b.csv", "day/a.csv", "day/deep/c")]
    (one,) = find_inputs(tmp_path / "in/day/a.csv", tmp_path / "in")
    assert one.target == tmp_path / "in/a.csv.out"


def test_an_output_among_the_inputs_or_no_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there are no files"):
        find_inputs(tmp_path, tmp_path.parent / "out")
    with pytest.raises(RunError, match="there is no input"):
        find_inputs(tmp_path / "none", tmp_path / "out")
    with pytest.raises(RunError, match="lies in the input"):
        find_inputs(tmp_path, tmp_path / "out")
