"""When pictures are drawn: not once the job is asked to stop, and a failure to draw is a line in the log."""

from pathlib import Path

import pytest

from trainbox.model.plots import Picture, draw_curves, draw_importance, draw_pictures


class Pictures:
    """Counts what is drawn, and asks the job to stop after so many."""

    def __init__(self, stop_after: int = 99) -> None:
        self.drawn = 0
        self._stop_after = stop_after

    def draw(self) -> None:
        self.drawn += 1

    def stop(self) -> bool:
        return self.drawn >= self._stop_after


def failing(error: Exception) -> Picture:
    def draw() -> None:
        raise error

    return draw


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_a_job_that_is_asked_to_stop_draws_no_further_picture(asked: int, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = Pictures(asked)
    draw_pictures(pictures.draw, pictures.draw, pictures.draw, stop=pictures.stop)
    assert pictures.drawn == asked
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib"),
            "no pictures: Matplotlib is not installed; the numbers are in output/data as JSON",
        ),
        (
            ModuleNotFoundError("No module named 'PIL'", name="PIL"),
            "WARNING: no pictures: ModuleNotFoundError: No module named 'PIL'",
        ),
        (
            OSError("Matplotlib requires access to\n  a writable cache directory"),
            "WARNING: no pictures: OSError: Matplotlib requires access to a writable cache directory",
        ),
        (MemoryError(), "WARNING: no pictures: MemoryError:"),
        (AttributeError("rcParamsDefault"), "WARNING: no pictures: AttributeError: rcParamsDefault"),
        (KeyError("font.size"), "WARNING: no pictures: KeyError: 'font.size'"),
        (SyntaxError("invalid syntax"), "WARNING: no pictures: SyntaxError: invalid syntax"),
        (UserWarning("tight_layout"), "WARNING: no pictures: UserWarning: tight_layout"),
        (ZeroDivisionError("division by zero"), "WARNING: no pictures: ZeroDivisionError: division by zero"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_one_line_and_the_others_are_drawn(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = Pictures()
    draw_pictures(failing(error), failing(error), pictures.draw, stop=pictures.stop)
    assert capsys.readouterr().err == f"trainbox: {line}\n"
    assert pictures.drawn == 1


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Drawn for real: its directory is missing."""
    good, bad = tmp_path / "importance", tmp_path / "absent" / "curves"
    draw_pictures(
        lambda: draw_curves(bad, {"validation:auc": ([0], [0.5])}),
        lambda: draw_importance(good, {"a": 1.0}),
        stop=lambda: False,
    )
    said = capsys.readouterr().err
    assert said.startswith("trainbox: WARNING: no pictures: FileNotFoundError: ")
    assert said.count("\n") == 1
    assert str(bad.parent) in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["importance.png", "importance.svg"]


def test_the_interrupt_of_a_person_is_no_failure_to_draw() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_pictures(interrupted, stop=lambda: False)
