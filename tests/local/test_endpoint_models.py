"""A model before it is served: where it lies, the request its card makes, the plan of its server, what is shown."""

import io
import shlex
import tarfile
from pathlib import Path

import msgspec
import pytest

from tests.local.test_describe import call
from trainbox.cli import describe
from trainbox.contract.hosting import read_hosting
from trainbox.contract.model_card import CARD_FILE, Features, ModelCard, SampleRow, encode_card
from trainbox.errors import DataError, ProgramError, RunError
from trainbox.local.endpoints.content_types import guess_content_type, media_type
from trainbox.local.endpoints.endpoint import EndpointAnswer
from trainbox.local.endpoints.model_source import ModelSource, find_source, unpacked
from trainbox.local.endpoints.model_summary import summarise_model
from trainbox.local.endpoints.refusal import RefusedRequest, point_at, read_refusal
from trainbox.local.endpoints.sample_request import curl_command, make_request, schema_line
from trainbox.local.endpoints.server_plan import plan_server
from trainbox.local.results.record import JobRecord, write_record

CARD = ModelCard(
    framework="xgboost",
    algorithm="xgboost",
    objective="binary:logistic",
    features=Features(3, ("age", "town", "pay"), {"town": "text"}),
    classes=(0, 1),
    categories={"town": ("Bern", "St. Gallen, it's")},
    samples=(SampleRow({"age": 3.0, "town": "St. Gallen, it's", "pay": 0.1}, 0.25),),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    (directory / CARD_FILE).parent.mkdir(parents=True)
    (directory / CARD_FILE).write_bytes(encode_card(CARD))
    (directory / "xgboost-model").write_bytes(b"{}")
    return directory


def archive(model: Path, place: Path) -> Path:
    with tarfile.open(place, "w:gz") as tar:
        tar.add(model, ".")
    return place


def job(out: Path) -> Path:
    out.mkdir(exist_ok=True)
    write_record(JobRecord(job_name="j", attempt=1, started="now", script="train.py", status="Failed"), out)
    return out


# ---- where it lies ----


def test_a_folder_an_archive_and_a_job_are_the_same_model(model: Path, tmp_path: Path) -> None:
    packed = archive(model, tmp_path / "model.tar.gz")
    assert find_source(model) == ModelSource("directory", model)
    assert find_source(packed) == ModelSource("archive", packed)
    # The folder of the job that `model` and `model.tar.gz` lie in.
    assert find_source(job(tmp_path)) == ModelSource("directory", model)
    for source in (model, packed, tmp_path):
        with unpacked(find_source(source)) as root:
            assert (root / "model" / CARD_FILE).read_bytes() == encode_card(CARD)
        assert not root.exists()
    assert (model / "xgboost-model").exists()


def test_a_job_that_has_only_the_archive_is_served_from_it(model: Path, tmp_path: Path) -> None:
    out = job(tmp_path / "out")
    with pytest.raises(RunError, match=r"job 'j' in .* has no model \(Failed\)"):
        find_source(out)
    packed = archive(model, out / "model.tar.gz")
    assert find_source(out) == ModelSource("archive", packed)


def test_what_is_no_model_or_not_safe_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "train.py").touch()
    for name in ("none", "train.py", "none.tar.gz"):
        with pytest.raises(RunError, match=name):
            find_source(tmp_path / name)
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("../outside")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(ProgramError, match="lies outside of it"), unpacked(find_source(tmp_path / "bad.tar.gz")):
        pass
    assert not list((tmp_path / "scratch").iterdir())


# ---- the request that its card makes ----


def test_the_sample_row_is_a_request_that_a_shell_can_send() -> None:
    request = make_request(CARD)
    assert request is not None
    assert (request.content_type, request.body) == ("text/csv", '3,"St. Gallen, it\'s",0.1')
    words = shlex.split(curl_command(request, "http://127.0.0.1:8080"))
    assert words[-2:] == [request.body, "http://127.0.0.1:8080/invocations"]


@pytest.mark.parametrize(("absent", "body"), [("missing", ",7,"), ("zero", "0,7,0")])
def test_features_that_a_sample_does_not_name_are_what_the_card_says(absent: str, body: str) -> None:
    changes = {"features": Features(3), "categories": {}, "absent": absent, "samples": (SampleRow({"f1": 7.0}, 0.5),)}
    request = make_request(msgspec.structs.replace(CARD, **changes))
    assert request is not None
    assert request.body == body


def test_a_wide_row_is_libsvm_another_delimiter_counts_and_an_image_has_no_row() -> None:
    wide = {"features": Features(1_000_000), "categories": {}, "samples": (SampleRow({"f9": 1.5, "f2": 7.0}, 0.5),)}
    request = make_request(msgspec.structs.replace(CARD, **wide))
    assert request is not None
    assert (request.content_type, request.body) == ("text/libsvm", "2:7 9:1.5")
    other = make_request(msgspec.structs.replace(CARD, delimiter=";"))
    assert other is not None
    assert other.body == '3;"St. Gallen, it\'s";0.1'
    assert make_request(msgspec.structs.replace(CARD, shape=(3, 8, 8))) is None
    assert make_request(msgspec.structs.replace(CARD, samples=())) is None


def test_one_line_says_what_a_model_takes_and_gives() -> None:
    assert schema_line(CARD) == ("xgboost xgboost, binary:logistic: 3 features (age, town, pay) -> 2 classes (0, 1)")
    plain = msgspec.structs.replace(CARD, features=Features(9), categories={}, classes=(), samples=())
    assert schema_line(plain).endswith(": 9 features -> a number")


# ---- the plan of its server ----


def test_the_server_listens_on_loopback_alone_and_reads_nothing_of_the_shells_sagemaker(tmp_path: Path) -> None:
    inherited = {"PATH": "/bin", "SAGEMAKER_BATCH": "true", "SM_HOSTS": "[]", "TRAINBOX_SERVE_CODE": "never"}
    given = {"SAGEMAKER_INFERENCE_OUTPUT": "probability"}
    plan = plan_server(tmp_path, port=8081, workers=2, given=given, inherited=inherited)
    assert plan.environment == {
        "PATH": "/bin",
        "TRAINBOX_SERVE_CODE": "never",
        "SAGEMAKER_INFERENCE_OUTPUT": "probability",
        "SAGEMAKER_MODEL_SERVER_WORKERS": "2",
        "TRAINBOX_ROOT": str(tmp_path),
        "SAGEMAKER_BIND_TO_PORT": "8081",
        "TRAINBOX_BIND_ADDRESS": "127.0.0.1",
    }
    hosting = read_hosting(plan.environment)
    assert (hosting.model_dir, hosting.port, hosting.workers) == (tmp_path / "model", 8081, 2)
    assert plan.url == "http://127.0.0.1:8081"
    container = plan_server(tmp_path, port=8081, workers=2, given=given, inherited=inherited, image="trainbox:cpu")
    assert container.argv == ("serve",)
    assert container.environment == {"SAGEMAKER_MODEL_SERVER_WORKERS": "2", **given}
    with pytest.raises(RunError, match="--env SAGEMAKER_BIND_TO_PORT is set by"):
        plan_server(tmp_path, port=1, workers=None, given={"SAGEMAKER_BIND_TO_PORT": "2"}, inherited={})


# ---- what is shown ----


def test_describe_tells_a_model_from_a_script(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = archive(model, tmp_path / "model.tar.gz")
    for path in (model, packed, job(tmp_path)):
        assert call(describe, path) == 0
        text = capsys.readouterr().out
        for words in ("xgboost xgboost, binary:logistic", "0, 1", "0.25", "text", "Bern", "runs code", "text/csv"):
            assert words in text
    assert call(describe, packed, "--json") == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=ModelCard) == CARD


def test_a_folder_does_not_hide_the_bundled_script_of_its_name(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model.rename(model.with_name("xgboost"))
    monkeypatch.chdir(model.parent)
    assert call(describe, "xgboost") == 0
    assert "num_round" in capsys.readouterr().out
    assert call(describe, "./xgboost") == 0
    assert "runs code" in capsys.readouterr().out


def test_hooks_and_code_are_named_without_running_them(model: Path, tmp_path: Path) -> None:
    assert not summarise_model(tmp_path, model).code
    (model / "code").mkdir()
    (model / "code/inference.py").write_text("raise SystemExit\nfrom other import output_fn\ndef input_fn(b, t): ...\n")
    summary = summarise_model(tmp_path, model)
    assert summary.hooks == ("input_fn", "output_fn")
    assert summary.code == ("code/inference.py",)
    (model / "code/inference.py").write_text("def broken(:")
    with pytest.raises(ProgramError, match=rf"{model}/code/inference\.py is not a Python module"):
        summarise_model(tmp_path, model)


def test_a_foreign_model_is_described_by_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.pkl").write_bytes(b"1234")
    assert call(describe, tmp_path) == 0
    text = capsys.readouterr().out
    assert "scikit-learn, trained by another program" in text
    assert "model.pkl (4 bytes)" in text
    assert "model.pkl: serve it only if you trust who made it" in text
    with pytest.raises(RunError, match="has no model card"):
        call(describe, tmp_path, "--json")
    (tmp_path / "xgboost-model").touch()
    with pytest.raises(DataError, match=rf"{tmp_path} has several models: model\.pkl, xgboost-model"):
        call(describe, tmp_path)


# ---- what an endpoint refuses ----


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": "no", "row": 2, "column": 1, "name": "a", "hint": "h", "id": "i", "value": "x"}',
         RefusedRequest("no", 2, 1, "a", "h", "i")),
        (b"<html><h1>Bad</h1>\n request</html>", RefusedRequest("Bad request")),
        (b'{"code": 500}', RefusedRequest('{"code": 500}')),
        (b"", RefusedRequest("(no text)")),
        (b"\xff" * 3, RefusedRequest("\ufffd" * 3)),
    ],
)  # fmt: skip
def test_any_body_of_an_error_is_read(body: bytes, expected: RefusedRequest) -> None:
    assert read_refusal(EndpointAnswer(400, "", body)) == expected


def test_the_mark_is_below_the_cell_also_of_a_long_or_strange_line() -> None:
    lines = point_at(RefusedRequest("no", 2, 3), b"1,2,3\n4,\x1b[31m5,abc", "text/csv; header=absent")
    assert lines[1].index("^") == lines[0].index("abc")
    assert lines[1].count("^") == 3
    body = b",".join(b"%d" % number for number in range(1000))
    lines = point_at(RefusedRequest("no", 1, 900), body, "text/csv")
    assert lines[0][lines[1].index("^") :] == "899"
    assert len(lines[0]) < 140
    for refusal, kind in (
        (RefusedRequest("no"), "text/csv"),
        (RefusedRequest("no", 9), "text/csv"),
        (RefusedRequest("no", 1), "image/png"),
    ):
        assert point_at(refusal, b"1\n", kind) == ()
    assert point_at(RefusedRequest("no", 1, 9), b"1,2\n", "text/csv") == ("  row 1, column 9: 1,2",)


def test_the_name_of_a_file_says_its_type() -> None:
    assert guess_content_type(Path("a/B.CSV")) == "text/csv"
    assert guess_content_type(Path("rows")) == ""
    assert media_type("Text/CSV; charset=utf-8") == "text/csv"
