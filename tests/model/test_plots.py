"""Learning curves and importance as pictures: whole, the same each time, and of whatever numbers there are."""

import io
import math
import re
import subprocess
import sys
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainbox.model import figures, plots
from trainbox.model.curves import fold_curve
from trainbox.model.plots import Curve, draw_curves, draw_folds, draw_importance

CURVES: dict[str, dict[str, Curve]] = {
    "many": {"validation:auc": (range(100), [1 - 1 / (i + 2) for i in range(100)]), "train:auc": ([0, 50], [0.6, 0.9])},
    "one point": {"validation:accuracy": ([10], [0.8])},
    "gaps": {"validation:auc": (range(5), [0.5, math.nan, 0.6, math.inf, 0.7])},
    "nothing finite": {"validation:r2": ([1, 2], [math.nan, math.nan])},
    "no values": {"validation:r2": ([], [])},
    "none": {},
    "seven metrics": {f"validation:m{i}": ([1, 2], [i, i + 1.0]) for i in range(7)},
    "odd names": {"a very long channel with $ and _:x@0.5": ([1], [1.0]), "plain": ([1], [1.0])},
}


@pytest.mark.parametrize("curves", CURVES.values(), ids=CURVES.keys())
def test_curves_of_any_kind_are_drawn(tmp_path: Path, curves: dict[str, Curve]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curves(tmp_path / "learning-curves", curves, step="trees")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learning-curves.png", "learning-curves.svg"]
    assert (tmp_path / "learning-curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert (tmp_path / "learning-curves.svg").read_bytes().rstrip().endswith(b"</svg>")


IMPORTANCE = {
    "many": {f"f{i}": 1.0 / (i + 1) for i in range(100)},
    "long and odd names": {"x" * 300: 0.5, "price in $ per m_2$": 0.3, "价格": 0.2, "": 0.1},
    "negative": {"a": -0.5, "b": 0.2},
    "large": {"a": -4.9e7, "b": 5.123e7},
    "nothing finite": {"a": math.nan},
    "all zero": {"a": 0.0, "b": 0.0},
    "none": {},
}


@pytest.mark.parametrize("importance", IMPORTANCE.values(), ids=IMPORTANCE.keys())
def test_importance_of_any_kind_is_drawn(tmp_path: Path, importance: dict[str, float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_importance(tmp_path / "importance", importance, kind="gain")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["importance.png", "importance.svg"]


def test_the_same_numbers_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        draw_curves(tmp_path / f"{name}-curves", CURVES["many"])
        draw_importance(tmp_path / f"{name}-importance", IMPORTANCE["many"])
    for kind in ("curves.png", "curves.svg", "importance.png", "importance.svg"):
        content = (tmp_path / f"one-{kind}").read_bytes()
        assert content == (tmp_path / f"other-{kind}").read_bytes()
        if kind.endswith(".png"):  # neither a date nor the version of the library
            assert {*Image.open(io.BytesIO(content)).info} == {"dpi"}
        else:
            assert b"date" not in content


FOLDS = [
    [(step, {"validation:auc": 0.5 + step * 0.1 + fold * 0.01, "train:auc": 0.9}) for step in range(3 + fold)]
    for fold in range(3)
]


@pytest.mark.parametrize("folds", [FOLDS, FOLDS[:1], [[(0, {"validation:auc": math.nan})]] * 2, []])
def test_folds_of_any_kind_are_drawn(tmp_path: Path, folds: list[list[tuple[int, dict[str, float]]]]) -> None:
    names = dict.fromkeys(name for fold in folds for _, scores in fold for name in scores)
    curves = {name: fold_curve(name, folds, [fold[-1][0] for fold in folds]) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_folds(tmp_path / "learning-curves", curves)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learning-curves.png", "learning-curves.svg"]


def test_the_mean_of_folds_is_over_those_that_have_the_step() -> None:
    curve = fold_curve("validation:auc", FOLDS, [2, 1, 4])
    assert curve.steps == [0, 1, 2, 3, 4]
    assert curve.mean == pytest.approx([0.51, 0.61, 0.71, 0.815, 0.92])
    assert curve.deviation == pytest.approx([0.01, 0.01, 0.01, 0.0070711, 0.0], abs=1e-6)
    assert curve.selected == [(2, 0.7), (1, 0.61), (4, 0.92)]
    assert curve.summary == pytest.approx((0.7433333, 0.1594783))


def test_where_a_fold_has_no_score_in_its_round_the_last_one_before_counts() -> None:
    folds = [[(0, {"train:auc": 0.5}), (9, {"train:auc": 0.7})], [(0, {"train:auc": 0.6}), (1, {})]]
    assert fold_curve("train:auc", folds, [9, 1]).summary == pytest.approx((0.65, 0.0707107))


def texts(path: Path) -> list[str]:
    """What stands in a picture: Matplotlib notes each text above its outlines."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_axes_have_titles_and_the_selected_step_its_values(tmp_path: Path) -> None:
    draw_curves(tmp_path / "c", CURVES["many"], step="rounds", selected=50)
    shown = texts(tmp_path / "c.svg")
    assert {"rounds", "auc", "0.980769", "validation  0.980769 at 50", "train  0.9 at 50"} <= {*shown}
    draw_curves(tmp_path / "d", CURVES["many"], step="rounds", selected=51)
    assert {"validation  0.981132 at 51", "train  0.9"} <= {*texts(tmp_path / "d.svg")}
    draw_importance(tmp_path / "i", IMPORTANCE["negative"], kind="total gain")
    assert {"feature", "total gain", "a", "b"} <= {*texts(tmp_path / "i.svg")}
    draw_folds(tmp_path / "f", {"validation:auc": fold_curve("validation:auc", FOLDS, [2, 1, 4])}, step="rounds")
    assert {"Learning curves of 3 folds", "validation  mean 0.743333, deviation 0.159"} <= {*texts(tmp_path / "f.svg")}


def test_more_features_than_fit_are_counted_in_the_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    figure = figures.new_figure

    def note(width: float, height: float, title: str) -> AbstractContextManager[Any]:
        titles.append(title)
        return figure(width, height, title)

    monkeypatch.setattr(plots, "new_figure", note)
    draw_importance(tmp_path / "a", IMPORTANCE["many"], most=10)
    draw_importance(tmp_path / "b", {"a": 1.0})
    assert titles == ["Feature importance: 10 of 100 features", "Feature importance"]


@pytest.mark.parametrize("kind", CURVES)
def test_nothing_beside_the_curves_leaves_the_picture(kind: str, tmp_path: Path) -> None:
    draw_curves(tmp_path / "a", CURVES[kind], selected=1)
    require_white_edges(tmp_path / "a.png")


@pytest.mark.parametrize("kind", IMPORTANCE)
def test_nothing_that_is_written_beside_the_bars_leaves_the_picture(kind: str, tmp_path: Path) -> None:
    draw_importance(tmp_path / "a", IMPORTANCE[kind], kind="total gain")
    require_white_edges(tmp_path / "a.png")


def require_white_edges(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    edges = np.concatenate([pixels[:2].ravel(), pixels[-2:].ravel(), pixels[:, :2].ravel(), pixels[:, -2:].ravel()])
    assert (edges == 255).all()
    assert (pixels < 128).any()


def test_a_long_name_keeps_its_begin_and_its_end() -> None:
    assert figures.shorten("short") == "short"
    name = figures.shorten("customer_address_" + "x" * 50 + "_in_the_last_month")
    assert len(name) == 36
    assert name.startswith("customer_address")
    assert name.endswith("in_the_last_month")


@pytest.mark.process
def test_the_settings_of_this_process_stay_as_they_are_and_pyplot_is_not_loaded(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from trainbox.model.plots import draw_curves, draw_importance\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"
        f"draw_curves(pathlib.Path({str(tmp_path / 'a')!r}), {{'x': ([1], [2.0])}})\n"
        "assert dict.__eq__(before, matplotlib.rcParams.copy())\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
