"""The summary ends with a few things to do next, each of which can be copied from there."""

import datetime as dt
from pathlib import Path

import msgspec
import pytest

from trainbox.cli.screen.next_steps import find_pictures, next_lines
from trainbox.local.backends.isolation import Isolation
from trainbox.local.request import RunRequest
from trainbox.local.results.record import HostRecord, JobRecord, ModelRecord, Status
from trainbox.local.source import Source

REQUEST = RunRequest(
    script="train.py",
    source=Source(Path("/my src"), ("train.py",), 10),
    hyperparameters={"api_token": "topsecret"},
    job_name="job",
    out=Path("/results/job"),
    isolation=Isolation(),
    started=dt.datetime(2026, 11, 5, tzinfo=dt.UTC),
)
RECORD = JobRecord(
    job_name="job",
    status="Completed",
    attempt=1,
    started="",
    script="train.py",
    hosts=(HostRecord("algo-1", 0, "logs/algo-1.log"),),
)
PICTURE = Path("/results/job/output/data/learning-curves.png")
AGAIN = "trainbox run '/my src/train.py' --hp 'api_token=***' --job-name job --out /results/job"


@pytest.mark.parametrize(
    ("status", "pictures", "checkpoints", "first", "last"),
    [
        (
            "Completed",
            (PICTURE,),
            0,
            f"look at the pictures: {PICTURE}",
            f"run it again here: {AGAIN} --ov",
        ),
        (
            "Completed",
            (),
            3,
            "read what it said: less /results/job/logs/algo-1.log",
            "run it again here: ",
        ),
        ("Failed", (PICTURE,), 0, "read what it said: less /results", f"run it again here: {AGAIN} --ov"),
        ("Failed", (), 2, "read what it said: less /results", f"go on from its checkpoints: {AGAIN} --resume"),
        ("Stopped", (), 1, "read what it said: less /results", f"go on from its checkpoints: {AGAIN} --resume"),
    ],
)
def test_what_comes_next_depends_on_how_it_ended(
    status: Status, pictures: tuple[Path, ...], checkpoints: int, first: str, last: str
) -> None:
    record = msgspec.structs.replace(RECORD, status=status)
    lines = next_lines(REQUEST, record, pictures, checkpoints=checkpoints).split("\n")
    assert (lines[0], lines[4:]) == ("", [""])
    assert lines[1].startswith(f"Next: {first}")
    assert lines[2] == "Next: see what can be changed with --hp: trainbox describe '/my src/train.py'"
    assert lines[3].startswith(f"Next: {last}")


def test_a_bundled_script_is_described_by_its_name_and_a_shell_script_is_not() -> None:
    bundled = msgspec.structs.replace(REQUEST, source=None, script="xgboost_train")
    assert "trainbox describe xgboost_train\n" in next_lines(bundled, RECORD, (), checkpoints=0)
    shell = msgspec.structs.replace(REQUEST, script="train.sh")
    assert "Next: read the record of it: less /results/job/job.json\n" in next_lines(shell, RECORD, (), checkpoints=0)


def test_a_model_of_this_attempt_is_to_be_served() -> None:
    predict = (
        "Next: predict with it: trainbox serve /results/job;"
        " for whole files: trainbox transform /results/job --input FILE --output DIR\n"
    )
    model = msgspec.structs.replace(RECORD, model=ModelRecord("model.tar.gz", 10, 1), result=1)
    assert predict in next_lines(REQUEST, model, (), checkpoints=0)
    for changes in ({"model": None}, {"status": "Stopped"}, {"result": None}, {"attempt": 2}):
        assert "predict" not in next_lines(REQUEST, msgspec.structs.replace(model, **changes), (), checkpoints=0)


def test_a_few_pictures_are_named_wherever_they_lie(tmp_path: Path) -> None:
    assert find_pictures(tmp_path) == ()
    data = tmp_path / "output/data"
    for name in ("b.png", "sub/a.png", "b.svg", *(f"z{number}.png" for number in range(9))):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    assert find_pictures(tmp_path) == (data / "b.png", data / "sub/a.png", data / "z0.png", data / "z1.png")
