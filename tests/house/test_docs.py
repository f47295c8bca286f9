"""What docs/ and the README say is what happens: their commands run, their generated tables are the code's."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"```(python|console)\n(.*?)```", re.DOTALL)


def blocks(page: str, kind: str) -> list[str]:
    return [text for found, text in _BLOCK.findall((DOCS / page).read_text()) if found == kind]


def commands(page: str) -> Iterator[list[str]]:
    for block in blocks(page, "console"):
        for line in block.splitlines():
            # Those of docker are run by tests/image/test_docs_docker.py.
            if line.startswith("$ ") and "docker" not in line:
                yield shlex.split(line[2:])


def run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(command[0])
    return subprocess.run(
        [str(program), *command[1:]], cwd=directory, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two channels that the example can learn: the class is the sign of the first column."""
    for channel in ("train", "validation"):
        directory = tmp_path / "data" / channel
        directory.mkdir(parents=True)
        rows = [f"{int(x > 0)},{x},{x * x / 10}" for x in (-3.0, -2.0, -1.5, -1.0, 1.0, 1.5, 2.0, 3.0)]
        (directory / "part-0.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.process
def test_the_first_page_takes_a_reader_from_nothing_to_a_job(data: Path) -> None:
    (script,) = blocks("your-own-algorithm.md", "python")
    lines = [line for line in script.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 20
    (data / "nearest_mean.py").write_text(script)
    answers = [(command, run(command, data)) for command in commands("your-own-algorithm.md")]
    assert len(answers) == 5
    for command, answer in answers:
        expected = 6 if "shrnk=0.1" in command else 0
        assert answer.returncode == expected, (command, answer.stdout, answer.stderr)
    job = json.loads((data / "result" / "job.json").read_text())
    assert job["status"] == "Completed"
    assert job["final"]["validation:accuracy"] == 1.0
    assert "did you mean 'shrink'?" in (data / "typo" / "output" / "failure").read_text()
    assert len(list(data.glob("trainbox-out/nearest_mean-*/model/means.json"))) == 1


@pytest.mark.process
@pytest.mark.parametrize("page", ["xgboost.md", pytest.param("random-forest.md", marks=pytest.mark.long)])
def test_the_pages_of_the_bundled_scripts_run(page: str, data: Path) -> None:
    for command in commands(page):
        answer = run(command, data)
        assert answer.returncode == 0, (command, answer.stdout, answer.stderr)
        assert "Completed, exit code 0" in answer.stdout


@pytest.mark.process
def test_the_generated_tables_are_what_the_code_says() -> None:
    answer = run(["python", str(ROOT / "tools" / "docs.py"), "--check"], ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_verb_the_readme_names_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for verb in set(re.findall(r"make ([a-z][a-z-]*)", (ROOT / "README.md").read_text())):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), verb


def test_the_readme_shows_real_output_and_no_placeholder() -> None:
    text = (ROOT / "README.md").read_text()
    assert "<!--" not in text
    assert "flights: Completed, exit code 0" in text
