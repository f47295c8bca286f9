"""The bundled PyTorch script, end to end: from channels to a model that loads without it."""

import io
import json
import re
import runpy
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.digits import write_digits
from tests.support.worlds import Ranks, finish
from trainbox.contract.model_card import read_card
from trainbox.errors import DataError
from trainbox.metrics import check, parse_line
from trainbox.torch.networks.encoders import Columns
from trainbox.torch.networks.images import read_images
from trainbox.torch.networks.rows import read_rows

pytestmark = pytest.mark.process

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "pytorch_train.py"


@pytest.fixture
def digits(tmp_path: Path) -> list[str]:
    """1,797 images of handwritten digits, as flags."""
    return write_digits(tmp_path)


@pytest.fixture
def table(tmp_path: Path) -> list[str]:
    """A table whose label needs the codes of one column, with holes in another, as flags."""
    random = np.random.default_rng(0)
    worth = np.array([-2.0, 3.0, 0.0, 1.0])
    flags = []
    for name, rows in (("train", 2000), ("validation", 500)):
        code, number, other = random.integers(0, 4, rows), random.normal(50, 20, rows), random.normal(0, 1, rows)
        target = 1000 + 100 * (worth[code] + (number - 50) / 20)
        holes = np.where(random.random(rows) < 0.1, "", other.round(3).astype(str))
        lines = [f"{t:.2f},{c},{n:.2f},{h}" for t, c, n, h in zip(target, code, number, holes, strict=True)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.csv").write_text("\n".join(["target,kind,amount,noise", *lines]) + "\n")
        flags += ["--channel", f"{name}={tmp_path / name}"]
    return flags


def scores(log: str, name: str) -> list[float]:
    """Every value of a metric that a log has, the final one included."""
    samples = [sample for line in log.splitlines() if (sample := parse_line(line)) is not None]
    return [sample.values[name] for sample in samples if name in sample.values]


@pytest.mark.long
def test_two_ranks_learn_digits_and_leave_a_model_that_loads_without_the_script(
    digits: list[str], tmp_path: Path
) -> None:
    flags = [
        *digits,
        "--epochs",
        "8",
        "--batch-size",
        "64",
        "--learning-rate",
        "0.01",
        "--augment",
        "1",
        "--accumulate",
        "2",
    ]
    log, other = finish([SCRIPT, *flags], root=tmp_path / "root")
    model = tmp_path / "root" / "model"
    card = read_card(model)
    weights = torch.load(model / "model.pt", weights_only=True)
    program: Any = torch.export.load(model / "model.pt2").module()

    assert scores(log, "validation:accuracy")[-1] > 0.93
    assert (model / "model.pt2").stat().st_size < 2 * (model / "model.pt").stat().st_size + 100_000, "no data in it"
    assert parse_line(log.strip().splitlines()[-1]) is not None
    assert "[metrics]" not in other
    assert "2 ranks, 2 on this host, gloo on cpu (there is no GPU here), fp32" in log
    assert (card.complete, card.classes, card.shape) == (True, tuple(str(digit) for digit in range(10)), (1, 8, 8))
    assert card.details["statistics"]["0.mean"] == weights["0.mean"].flatten().tolist()
    images = read_images(tmp_path / "validation")
    outputs = program(torch.from_numpy(images.pixels).float())
    accuracy = (outputs.argmax(1).numpy() == images.labels).mean()
    assert accuracy == pytest.approx(card.metrics["validation:accuracy"], abs=1e-9)
    assert program(torch.from_numpy(images.pixels[:1]).float()).shape == (1, 10)


@pytest.mark.long
@pytest.mark.parametrize("size", [1, 2])
def test_stopped_and_resumed_it_leaves_the_same_model(size: int, digits: list[str], tmp_path: Path) -> None:
    flags = [*digits, "--epochs", "4", "--batch-size", "64", "--checkpoint-seconds", "0.2", "--augment", "1"]
    finish([SCRIPT, *flags], root=tmp_path / "whole", size=size)
    with Ranks([SCRIPT, *flags], root=tmp_path / "cut", size=size) as ranks:
        ranks.until(lambda: "[metrics] step=1" in ranks.log(0))
        ranks.signal(signal.SIGTERM, *range(size))
        assert ranks.wait() == [0] * size
        log = ranks.log(0)
    found = re.search(r"all ranks leave after step (\d+); it is saved", log)
    assert found, log
    unfinished = read_card(tmp_path / "cut/model")
    assert not unfinished.complete
    again = finish([SCRIPT, *flags], root=tmp_path / "cut", size=size)[0]
    assert f"resuming from step {found[1]}" in again
    curves = [(tmp_path / root / "output/data/learning-curves.json").read_text() for root in ("whole", "cut")]
    assert [json.loads(text)["validation:loss"]["epochs"] for text in curves] == [[0, 1, 2, 3]] * 2
    models = [torch.load(tmp_path / root / "model/model.pt", weights_only=True) for root in ("whole", "cut")]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_table_with_codes_and_holes_stops_early_at_its_best(table: list[str], tmp_path: Path) -> None:
    flags = [*table, "--task", "regression", "--categorical", "kind", "--epochs", "60", "--patience", "3"]
    flags += ["--batch-size", "64", "--learning-rate", "0.02", "--dropout", "0", "--schedule", "constant"]
    (log,) = finish([SCRIPT, *flags], root=tmp_path / "root", size=1)
    values = scores(log, "validation:rmse")
    script = runpy.run_path(str(SCRIPT))
    logged = check(script["metrics"](script["Params"](task="regression")), log.splitlines())
    assert (logged.undeclared, logged.unread_count) == ((), 0)
    assert [finding.count for finding in logged.findings] == [len(values)] * 4
    card = read_card(tmp_path / "root/model")
    output = tmp_path / "root/output/data"
    curves = json.loads((output / "learning-curves.json").read_text())
    assert curves["validation:rmse"] == {"epochs": list(range(len(values) - 1)), "values": values[:-1]}
    assert sorted(curves) == ["train:loss", "validation:loss", "validation:rmse"]
    assert f" at {card.best_iteration} -->" in (output / "learning-curves.svg").read_text(), "its best epoch is marked"
    assert len(values) - 1 < 60
    assert values[-1] == pytest.approx(min(values[:-1]), rel=0.02)
    assert values[-1] < 40  # 100 is what the codes are worth, 224 is all of it
    assert (card.best_iteration, card.features.names) == (len(values) - 5, ("kind", "amount", "noise"))
    program: Any = torch.export.load(tmp_path / "root/model/model.pt2").module()
    guess = program(torch.tensor([[1.0, 50.0, float("nan")], [0.0, 50.0, 0.0], [9.0, 50.0, 0.0]]))
    assert guess[0].item() == pytest.approx(1300, abs=60)
    assert guess[1].item() == pytest.approx(800, abs=60)
    assert guess.isfinite().all()


def test_a_model_of_the_users_own_takes_part_of_the_work(table: list[str], tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "mine.py").write_text(
        "import torch\ndef make(shape, outputs):\n    return torch.nn.Linear(*shape, outputs)\n"
    )
    flags = [*table, "--task", "regression", "--model", "mine:make", "--epochs", "1", "--channel", f"code={code}"]
    finish([SCRIPT, *flags], root=tmp_path / "root", size=1)
    weights = torch.load(tmp_path / "root/model/model.pt", weights_only=True)
    assert weights["1.weight"].shape == (1, 6)


@pytest.mark.parametrize(
    ("flags", "size", "code", "message"),
    [
        (["--batch-size", "1"], 2, 6, "batch-size 1 is below the 2 ranks that share each batch"),
        (
            ["--categorical", "knid"],
            1,
            6,
            "there is no column 'knid'\ntrainbox: hint: the columns are kind",
        ),
        (["--model", "mine:make"], 1, 6, "model 'mine:make': No module named 'mine'"),
        (["--task", "classification"], 1, 7, "is invalid: task=classification needs whole labels from 0"),
        (["--categorical", "amount"], 2, 7, "of categorical feature 'amount' is invalid: a code is"),
    ],
)
def test_what_cannot_be_is_said_at_the_start(  # noqa: PLR0917 - one column each
    flags: list[str], size: int, code: int, message: str, table: list[str], tmp_path: Path
) -> None:
    with Ranks([SCRIPT, "--task", "regression", *table, *flags], root=tmp_path / "root", size=size) as ranks:
        assert ranks.wait() == [code] * size
        assert message in ranks.log(0)


@pytest.mark.parametrize(
    "patience",
    [pytest.param([], id="all epochs", marks=pytest.mark.long), pytest.param(["--patience", "2"], id="patience")],
)
def test_without_any_finite_validation_loss_no_epoch_is_the_best(patience: list[str], tmp_path: Path) -> None:
    flags = []
    for name, label in (("train", 1.0), ("validation", 3e38)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.csv").write_text("".join(f"{label * n},{n}\n" for n in (0.5, 1, 0.25, 0.75)))
        flags += ["--channel", f"{name}={tmp_path / name}"]
    flags += ["--task", "regression", "--epochs", "4", "--batch-size", "4", *patience]
    with Ranks([SCRIPT, *flags], root=tmp_path / "root", size=2) as ranks:
        assert ranks.wait() == [11, 11], ranks.log(0)
        count = 2 if patience else 4
        said = f"there is no best epoch: validation:loss was not a finite number in any of {count} epochs"
        assert said in ranks.log(0)
        assert said in ranks.log(1)
    assert not (tmp_path / "root/model/model.pt").exists()


def test_rows_that_cannot_be_learnt_are_named_by_file_and_row(tmp_path: Path) -> None:
    def refused(content: str, name: str = "a.csv", **given: Any) -> str:
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError) as caught:
            read_rows(tmp_path, **given)
        (tmp_path / name).unlink()
        return str(caught.value)

    place = f"{tmp_path.name}/a.csv"
    assert f"{place}:2: label 0.5 is invalid" in refused("1,2\n0.5,2\n", has_classes=True)
    assert f"{place}:2: label -1 is invalid" in refused("1,2\n-1,2\n", has_classes=True)
    assert f"{place}:2: label 5000000 is invalid" in refused("1,2\n5000000,2\n", has_classes=True)
    assert "all labels are equal, 1 (2 rows)" in refused("1,2\n1,3\n", has_classes=True)
    assert f"{place}:3: code 1.5 of categorical feature 'x' is invalid" in refused("y,x\n1,2\n3,1.5\n", codes=("x",))
    (tmp_path / "a.csv").write_text("1,2\n0,2\n")
    train = read_rows(tmp_path, has_classes=True)
    said = refused("1,2\n2,2\n", has_classes=True, like=train)
    assert f"{place}:2: label 2 is invalid: task=classification needs labels 0 and 1" in said
    assert "each class must occur in channel train" in said


# ---- what it reads and looks at ----


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    def refused(**arrays: Any) -> str:
        content = io.BytesIO()
        np.savez(content, **arrays)
        (tmp_path / "a.npz").write_bytes(content.getvalue())
        with pytest.raises(DataError) as caught:
            read_images(tmp_path)
        return str(caught.value)

    images, labels = np.zeros((3, 4, 4), np.uint8), np.array([0, 1, 1])
    assert "images' and 'labels'" in refused(images=images)
    assert "images of the shape (3, 16)" in refused(images=images.reshape(3, 16), labels=labels)
    assert "3 images and labels of the shape (2,)" in refused(images=images, labels=labels[:2])
    assert "label 0.5 of image 1 (counted from 0) is no class" in refused(images=images, labels=labels / 2)
    assert "cannot be read" in refused(images=images, labels=np.array([{}, 1, 2], object))
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(DataError, match=r"a\.npz cannot be read"):
        read_images(tmp_path)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match="holds pictures and arrays"):
        read_images(tmp_path)


def test_colours_come_first_and_classes_are_those_of_training(tmp_path: Path) -> None:
    for name, labels in (("train", [0, 2]), ("validation", [3])):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", np.arange(len(labels) * 5 * 4 * 3).reshape(-1, 5, 4, 3))
        np.save(tmp_path / name / "x-labels.npy", np.array(labels))
    train = read_images(tmp_path / "train")
    assert (train.pixels.shape, train.classes) == ((2, 3, 5, 4), ("0", "1", "2"))
    assert train.pixels[0, :, 0, 1].tolist() == [3, 4, 5]
    with pytest.raises(DataError, match="the class 3 does not occur in training"):
        read_images(tmp_path / "validation", like=train)


def test_a_column_of_one_value_or_of_none_does_no_harm() -> None:
    rows = torch.tensor([[1.0, 5.0, float("nan"), 7.0], [1.0, 5.0, float("nan"), float("nan")]])
    columns = Columns(rows, ["a", "b", "c", "d"], ["b"])
    encoded = columns(rows)
    assert encoded.shape == (2, columns.width)
    assert encoded.isfinite().all()
    assert encoded[:, 3:6].tolist() == [[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]]
