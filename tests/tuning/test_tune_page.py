"""The page about tuning: its commands run, on rows that are learned in a moment and with two trials each."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support.html_reader import read_html
from tests.support.snippets import DOCS, example, find_commands, run_line

pytestmark = pytest.mark.process

PAGE = DOCS / "tune.md"
#: The script of a guide for SageMaker, word for word.
GUIDE = Path(__file__).parents[1] / "fixtures" / "seed_train.py"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two channels that every script can learn: the class is the sign of the first column."""
    for channel in ("train", "validation"):
        place = tmp_path / "data" / channel
        place.mkdir(parents=True)
        rows = [f"{int(x > 0)},{x},{x * x / 10}" for x in (-3.0, -2.0, -1.5, -1.0, 1.0, 1.5, 2.0, 3.0)]
        (place / "part-0.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def run_command(containing: str, directory: Path) -> str:
    """Run the one command of the page that has a text; what it has printed."""
    (line,) = [each for each in find_commands(PAGE) if containing in each]
    few = re.sub(r"--trials \d+", "--trials 2", line).replace("batch-size=1024", "batch-size=4")
    done = run_line(few.replace("min_child_weight=20", "min_child_weight=0"), directory)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_search(directory: Path) -> None:
    record = json.loads((directory / "tuning.json").read_text())
    assert [trial["status"] for trial in record["trials"]] == ["Completed", "Completed"]
    assert record["best"] in (1, 2)
    assert sum(tag == "tr" for tag, _ in read_html((directory / "report.html").read_text()).tags) == 3


def test_the_first_search_leaves_what_the_page_says_and_prints_itself(directory: Path) -> None:
    said = run_command("--out search", directory)
    check_search(directory / "search")
    (shown,) = re.findall(r"^```text\n(best .*?)```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for head in re.findall(r"^(\w+:?) ", shown, re.MULTILINE):
        assert re.search(rf"^{head} ", said, re.MULTILINE), head
    assert (directory / "search" / "trial-001" / "job.json").exists()
    code = run_command("--print v2", directory)
    excerpt = next(
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "Estimator" in block
    )
    assert excerpt in code


@pytest.mark.long
@pytest.mark.parametrize("name", ["forests", "networks"])
def test_the_other_bundled_scripts_are_tuned(directory: Path, name: str) -> None:
    run_command(f"--out {name}", directory)
    check_search(directory / name)


@pytest.mark.long
@pytest.mark.parametrize("is_guide", [False, True])
def test_a_script_that_knows_nothing_of_trainbox_is_tuned(directory: Path, is_guide: bool) -> None:
    if is_guide:
        shutil.copy(GUIDE, directory / "train.py")
    else:
        (directory / "train.py").write_text(example("tune.md", "argparse"))
    run_command("--out guide", directory)
    check_search(directory / "guide")


def test_the_picture_of_the_report_is_small() -> None:
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE.read_text())
    assert (DOCS / picture).stat().st_size < 150_000
