"""Channels as hosts find them: shards, pipes of several epochs, objects of S3 in the cache, and a former model."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import COMMAND, record
from tests.support.s3 import KEY_ID, S3, SECRET, s3_served
from tests.support.waiting import LIMIT

pytestmark = pytest.mark.process

#: Writes what it finds of its channels into the model directory, by host.
LOOK = """
import json, os
from pathlib import Path
data = Path(os.environ["SM_INPUT_DIR"]) / "data"
found = {
    path.relative_to(data).as_posix(): path.read_text()
    for path in sorted(data.rglob("*")) if path.is_file()
}
link = any(path.is_symlink() for path in data.rglob("*"))
told = json.loads((Path(os.environ["SM_INPUT_CONFIG_DIR"]) / "inputdataconfig.json").read_text())
about = {"found": found, "config": told, "link": link, "group": os.environ["SM_CURRENT_INSTANCE_GROUP"]}
Path(os.environ["SM_MODEL_DIR"], os.environ["SM_CURRENT_HOST"] + ".json").write_text(json.dumps(about))
"""
#: Reads three epochs, the second not to its end.
EPOCHS = """
import os, time
from pathlib import Path
stem = os.environ["SM_CHANNEL_TRAIN"]
assert not os.path.exists(stem)
for epoch, size in ((0, -1), (1, 4), (2, -1)):
    path = f"{stem}_{epoch}"
    while not os.path.exists(path):
        time.sleep(0.01)
    with open(path, "rb", buffering=0) as pipe:
        content = b""
        while len(content) != size and (piece := pipe.read(65536 if size < 0 else size - len(content))):
            content += piece
    Path(os.environ["SM_MODEL_DIR"], str(epoch)).write_bytes(content)
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    for name, text in {"b.csv": "b\n", "a.csv": "a\n", "more/c.csv": "c\n"}.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    return tmp_path


@pytest.fixture
def s3() -> Iterator[S3]:
    with s3_served() as service:
        service.objects |= {
            "set/train/b.csv": b"b\n",
            "set/train/a.csv": b"a\n",
            "set/train/more/c.csv": b"c" * 300_000,
        }
        service.objects |= {"set/train/": b"", "set/training/z.csv": b"z\n"}
        yield service


def run(
    here: Path, script: str, *arguments: str, code: int = 0, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    (here / "src" / "train.py").write_text(script)
    done = subprocess.run(
        [*COMMAND, "src/train.py", *arguments],
        cwd=here,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=LIMIT,
        env={**_without_aws(), "XDG_CACHE_HOME": str(here / "cache"), **(env or {})},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def _without_aws() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    nowhere = {
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return {**kept, **nowhere}


def looked(here: Path, host: str = "algo-1") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((here / "out" / "model" / f"{host}.json").read_text())
    return found


def test_each_host_of_a_group_finds_its_shard_as_regular_files(here: Path) -> None:
    (here / "data" / "a.csv").chmod(0o640)
    done = run(
        here,
        LOOK,
        *("--hosts", "workers=2,evaluators=2", "--out", "out"),
        *("--channel", "train=data,sharded,groups=workers", "--channel", "test=data,sharded,groups=evaluators"),
    )
    first, second, third = (looked(here, f"algo-{number}") for number in (1, 2, 3))
    assert first["found"] == {"train/a.csv": "a\n", "train/more/c.csv": "c\n"}
    assert second["found"] == {"train/b.csv": "b\n"}
    assert list(third["config"]) == ["test"]
    assert (second["group"], third["group"]) == ("workers", "evaluators")
    assert not first["link"] or "TRAINBOX_ROOT is used" in done.stderr
    assert (here / "data" / "a.csv").stat().st_nlink == 1, "the shard is gone with the work directory"
    assert (here / "data" / "a.csv").stat().st_mode & 0o777 == 0o640
    assert record(here / "out")["channels"]["train"] == f"{here}/data,sharded,groups=workers"


def test_pipes_bring_every_epoch_and_whoever_closes_one_early_gets_the_next(here: Path) -> None:
    large = "0,1\n" * 300_000
    (here / "data" / "more" / "c.csv").write_text(large)
    run(here, EPOCHS, "--channel", "train=data,pipe", "--out", "out")
    model = here / "out" / "model"
    assert (model / "0").read_text() == (model / "2").read_text() == f"a\nb\n{large}"
    assert (model / "1").read_text() == "a\nb\n"


def test_a_file_that_cannot_be_streamed_ends_the_job_before_half_of_the_data_passes_for_all(here: Path) -> None:
    script = "import os\nos.unlink(os.environ['GONE'])\n" + EPOCHS
    done = run(
        here,
        script,
        "--channel",
        "train=data,pipe",
        "--out",
        "out",
        code=10,
        env={"GONE": str(here / "data/more/c.csv")},
    )
    assert "the pipe train of algo-1" in done.stderr
    assert "c.csv" in done.stderr
    assert record(here / "out")["status"] == "Failed"


def test_xgboost_learns_through_a_pipe_in_records(here: Path) -> None:
    for number in range(2):
        rows = "\n".join(f"{row % 2},{row % 2}.{row},{row}" for row in range(20))
        (here / "rows").mkdir(exist_ok=True)
        (here / "rows" / f"{number}.csv").write_text(rows + "\n")
    done = subprocess.run(
        [
            *(*COMMAND, "xgboost", "--hp", "num_round=2", "--hp", "objective=binary:logistic", "--out", "out"),
            *("--channel", "train=rows,pipe,content_type=text/csv,record_wrapper=RecordIO"),
        ],
        cwd=here,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    assert "train: 40 rows, 2 features" in (here / "out" / "logs" / "algo-1.log").read_text()


# ---- S3 ----


def test_objects_of_s3_come_once_and_nothing_shows_the_credentials(here: Path, s3: S3) -> None:
    arguments = ("--channel", "train=s3://bucket/set/train", "--hosts", "2", "--env", "AWS_SECRET_ACCESS_KEY")
    done = run(here, LOOK, *arguments, "--out", "out", env=s3.environment)
    expected = {"train/a.csv": "a\n", "train/b.csv": "b\n", "train/more/c.csv": "c" * 300_000}
    # A prefix is no folder: SageMaker takes every key that begins with it.
    assert looked(here)["found"] == looked(here, "algo-2")["found"] == {**expected, "train/training/z.csv": "z\n"}
    assert "4 objects of s3://bucket/set/train, 0 in the cache" in done.stderr
    assert "is the beginning of set/training/z.csv, too" in done.stderr
    for text in (done.stdout, done.stderr, (here / "out" / "job.json").read_text()):
        assert SECRET not in text
        assert KEY_ID not in text
    (here / "out").rename(here / "first")
    done = run(here, LOOK, "--channel", "train=s3://bucket/set/train/,sharded", "--out", "out", env=s3.environment)
    assert looked(here)["found"] == expected
    assert "3 in the cache, 0.0 MB to download" in done.stderr
    assert len(s3.gets("set/train/a.csv")) == 1
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in (here / "cache").rglob("*") if path.is_file())


def test_an_object_that_has_changed_comes_anew(here: Path, s3: S3) -> None:
    for content in (b"a\n", b"changed\n"):
        s3.objects["set/train/a.csv"] = content
        run(
            here,
            LOOK,
            "--channel",
            "train=s3://bucket/set/train/a.csv",
            "--out",
            f"out-{len(content)}",
            env=s3.environment,
        )
        found = json.loads((here / f"out-{len(content)}" / "model" / "algo-1.json").read_text())["found"]
        assert found == {"train/a.csv": content.decode()}


def test_a_connection_that_breaks_goes_on_where_it_was(here: Path, s3: S3) -> None:
    s3.cut_off.add("set/train/more/c.csv")
    run(here, LOOK, "--channel", "train=s3://bucket/set/train/", "--out", "out", env=s3.environment)
    assert s3.gets("set/train/more/c.csv") == ["bytes=0-299999", "bytes=150000-299999"]
    assert looked(here)["found"]["train/more/c.csv"] == "c" * 300_000


def test_a_download_that_is_interrupted_goes_on_in_the_next_run(here: Path, s3: S3) -> None:
    s3.slow.add("set/train/more/c.csv")
    (here / "src" / "train.py").write_text(LOOK)
    command = [*COMMAND, "src/train.py", "--channel", "train=s3://bucket/set/train/", "--out", "out"]
    env = {**_without_aws(), "XDG_CACHE_HOME": str(here / "cache"), **s3.environment}
    process = subprocess.Popen(command, cwd=here, env=env, stderr=subprocess.PIPE, text=True)
    assert s3.began.wait(LIMIT)
    process.send_signal(signal.SIGINT)
    s3.slow.clear()
    s3.hold.set()
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, said
    assert record(here / "out")["status"] == "Stopped"
    run(here, LOOK, "--channel", "train=s3://bucket/set/train/", "--out", "out", "--resume", env=s3.environment)
    assert looked(here)["found"]["train/more/c.csv"] == "c" * 300_000
    first, *rest = s3.gets("set/train/more/c.csv")
    assert first == "bytes=0-299999"
    assert rest[-1] != first, "what had come before was kept"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://bucket/nothing/", "there is no object at s3://bucket/nothing/"),
        ("s3://bucket/set/train/,shraded", "'shraded' is not an option of a channel - did you mean 'sharded'?"),
        ("s3://other/set", "NoSuchBucket"),
        ("s3:///set", "no bucket in the s3:// URI"),
    ],
)
def test_what_s3_does_not_have_is_said_before_anything_is_written(here: Path, s3: S3, uri: str, said: str) -> None:
    done = run(here, LOOK, "--channel", f"train={uri}", "--out", "out", code=10, env=s3.environment)
    assert said in done.stderr
    assert not (here / "out").exists()


def test_without_credentials_a_line_says_what_to_do(here: Path, s3: S3) -> None:
    endpoint = {"AWS_ENDPOINT_URL_S3": s3.environment["AWS_ENDPOINT_URL_S3"]}
    done = run(here, LOOK, "--channel", "train=s3://bucket/set", "--out", "out", code=10, env=endpoint)
    assert "there are no AWS credentials here" in done.stderr
    assert "aws sso login" in done.stderr
    assert "Traceback" not in done.stderr
