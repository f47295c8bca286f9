"""What docs/ and the README say is what happens: their commands run, their generated tables are the code's."""

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.addresses import free_port
from tests.support.snippets import DOCS, PAGES, ROOT, example, find_blocks, find_commands, run_line
from trainbox import Checkpoints


def blocks(page: str, kind: str) -> list[str]:
    return find_blocks(DOCS / page, kind)


def commands(page: str) -> Iterator[list[str]]:
    for line in find_commands(DOCS / page):
        # Those of docker are run by tests/image/test_docs_docker.py.
        if "docker" not in line:
            yield shlex.split(line)


def run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(command[0])
    return subprocess.run(
        [str(program), *command[1:]], cwd=directory, capture_output=True, text=True, check=False, timeout=300
    )


def run_lines(page: Path, directory: Path, *, expected: int) -> list[str]:
    """Run what a page has of trainbox, one line after the other; what each has printed."""
    lines = [line for line in find_commands(page) if "trainbox " in line and "docker" not in line]
    assert len(lines) == expected, lines
    said = []
    for line in lines:
        answer = run_line(line, directory)
        assert answer.returncode == 0, (line, answer.stdout, answer.stderr)
        said.append(answer.stdout + answer.stderr)
    return said


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
def test_the_readme_takes_a_reader_from_a_script_to_a_model(data: Path) -> None:
    (script,) = find_blocks(ROOT / "README.md", "python")
    assert len([line for line in script.splitlines() if line.strip()]) <= 12
    (data / "train.py").write_text(script)
    run_lines(ROOT / "README.md", data, expected=1)
    assert (data / "result" / "model" / "model.ubj").stat().st_size > 0
    assert json.loads((data / "result" / "job.json").read_text())["hyperparameters"] == {"rounds": "50"}


@pytest.mark.process
def test_the_page_of_tuning_checks_the_regexes_on_a_real_log_and_a_notebook_reads_the_result(data: Path) -> None:
    (data / "nearest_mean.py").write_text(example("your-own-algorithm.md", "class Params"))
    said = run_lines(DOCS / "tuning-job.md", data, expected=3)
    definitions = json.loads((data / "metric-definitions.json").read_text())
    assert [each["Name"] for each in definitions] == ["validation:accuracy"]
    assert "validation:accuracy" in said[-1]
    cell = subprocess.run(
        [sys.executable, "-c", example("debugger-and-notebooks.md", "job.json")],
        cwd=data,
        capture_output=True,
        text=True,
        check=False,
    )
    assert cell.stdout.startswith("Completed {'validation:accuracy': 1.0}"), cell.stderr


@pytest.mark.process
def test_a_first_request_and_whole_files_are_answered_as_the_pages_say(data: Path) -> None:
    train, serve, *others = find_commands(DOCS / "first-request.md")
    answer = run_line(train, data)
    assert answer.returncode == 0, answer.stderr
    url = f"http://127.0.0.1:{free_port()}"
    program = [
        str(Path(sys.executable).with_name("trainbox")),
        *shlex.split(serve)[1:],
        "--port",
        url.rpartition(":")[2],
        "--runtime-port",
        "0",
    ]
    with subprocess.Popen(program, cwd=data, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            runtime = next(line for line in server.stdout if "sagemaker-runtime" in line).split('"')[3]
            assert next(line for line in server.stdout if "curl" in line)
            call = example("first-request.md", "endpoint_url").replace("http://127.0.0.1:8081", runtime)
            assert run(["python", "-c", call], data).stdout.startswith("0.")
            for line in others:
                answer = run_line(f"{line} --url {url}" if " invoke " in line else line, data)
                assert answer.returncode == 0, (line, answer.stderr)
                assert " invoke " not in line or "0." in answer.stdout
            assert "runs code" in answer.stdout
        finally:
            server.terminate()
    for line in find_commands(DOCS / "batch-transform.md"):
        answer = run_line(line, data)
        assert answer.returncode == 0, (line, answer.stderr)
    assert (data / "predictions/rows.csv.out").read_text().startswith("0.")
    (joined,) = (data / "joined/people.csv.out").read_text().splitlines()
    assert joined.startswith("id-7,0.")


@pytest.mark.process
@pytest.mark.long
def test_the_ddp_script_trains_alone(data: Path) -> None:
    (data / "ddp.py").write_text(example("ddp-script.md", "with session"))
    line = "TRAINBOX_ROOT=alone python ddp.py --channel train=data/train --batch_size 4 --epochs 1"
    answer = run_line(line, data)
    assert answer.returncode == 0, answer.stderr
    assert "[metrics] step=2 train:loss=" in answer.stdout
    assert (data / "alone" / "model" / "model.pt").stat().st_size > 0


@pytest.mark.process
@pytest.mark.long
def test_the_ddp_script_trains_restarts_and_its_checkpoint_is_read(data: Path) -> None:
    script = example("ddp-script.md", "with session")
    assert len([line for line in script.splitlines() if line.strip()]) <= 40
    (data / "ddp.py").write_text(script)
    said = run_lines(DOCS / "ddp-script.md", data, expected=2)
    assert "restart 1 of 3: rank 1 was killed by SIGKILL after step 3" in said[1]
    assert "resuming from step 2" in said[1]
    for name in ("result", "killed"):
        job = json.loads((data / name / "job.json").read_text())
        assert job["status"] == "Completed"
        assert job["metrics"]["train:loss"]["steps"] == [2, 4]
        assert (data / name / "model" / "model.pt").stat().st_size > 0
    (data / "read_weights.py").write_text(example("read-a-checkpoint.md", "with session"))
    (data / "read.py").write_text(example("read-a-checkpoint.md", "for path in"))
    (line,) = [line for line in find_commands(DOCS / "read-a-checkpoint.md") if "read_weights.py" in line]
    answer = run_line(f"{line} && python read.py", data)
    assert answer.returncode == 0, answer.stderr
    assert "weights of step 4" in answer.stdout
    assert "state.json" in answer.stdout
    assert (data / "weights.pt").stat().st_size > 0


@pytest.mark.process
@pytest.mark.long
def test_the_pages_of_spot_training_and_of_data_sources_run(data: Path) -> None:
    rows = "".join(f"{n % 2},{n % 97},{n % 89}\n" for n in range(200_000))  # the stop comes before the last round
    (data / "data" / "train" / "part-1.csv").write_text(rows)
    first, second = run_lines(DOCS / "spot-training.md", data, expected=2)
    assert "Stopped" in first
    assert "Completed" in second
    block = example("read-a-checkpoint.md", "xgboost.Booster")
    answer = subprocess.run([sys.executable, "-c", block], cwd=data, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    run_lines(DOCS / "data-sources.md", data, expected=2)


@pytest.mark.process
def test_the_loop_of_the_page_about_checkpoints_resumes_where_it_was(tmp_path: Path) -> None:
    loop = example("checkpoints-and-stopping.md", "store.latest()")
    around = "import trainbox\n\ndef save(path):\n    path.write_bytes(b'weights')\n\nbest, steps = 0.5, {steps}\n"
    for steps, resumed in ((250, "starting fresh"), (300, "resuming from step 200")):
        script = f"{around.format(steps=steps)}{loop}\nprint('began behind', start)\n"
        done = run_line(f"TRAINBOX_ROOT=ml python -c {shlex.quote(script)}", tmp_path)
        assert done.returncode == 0, done.stderr
        assert resumed in done.stderr
    assert "began behind 200" in done.stdout
    found = Checkpoints(tmp_path / "ml" / "checkpoints").latest()
    assert found is not None
    assert (found.step, found.info) == (300, {"best": 0.5})


#: As scripts for torchrun are written.
PLAIN_DDP = """\
import torch
from torch import distributed

distributed.init_process_group("gloo")
total = torch.ones(1)
distributed.all_reduce(total)
print("rank", distributed.get_rank(), "of", int(total))
distributed.destroy_process_group()
"""


@pytest.mark.process
@pytest.mark.long
def test_the_page_of_launchers_runs(data: Path) -> None:
    (data / "train.py").write_text(PLAIN_DDP)
    ran, planned = run_lines(DOCS / "choose-the-launcher.md", data, expected=2)
    assert "rank 0 of 2" in ran
    assert "rank 1 of 2" in ran
    assert "WORLD_SIZE=8" in planned


@pytest.mark.process
def test_the_generated_tables_are_what_the_code_says() -> None:
    answer = run(["python", "-m", "tools.docs", "--check"], ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "THIRD_PARTY.md"]:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", _prose(page)):
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in _anchors(there), f"{page.name}: {target}#{anchor}"


def _prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]+`", "", _without_blocks(page))


def _without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """As the usual renderers make them of titles."""
    titles = re.findall(r"^#+ (.*)$", _without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_index_and_every_verb_of_make_in_the_makefile() -> None:
    listed = set(re.findall(r"\]\(([a-z-]+\.md)\)", (DOCS / "index.md").read_text()))
    assert listed == {page.name for page in DOCS.glob("*.md")} - {"index.md"}
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for verb in set(re.findall(r"(?:`|^\$ )make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE)):
            assert re.search(rf"^{verb}:", makefile, re.MULTILINE), f"{page.name}: make {verb}"


def test_every_python_example_is_python() -> None:
    for page in PAGES:
        for block in find_blocks(page, "python"):
            ast.parse(block, filename=str(page))


def test_the_rows_of_the_architecture_page_are_those_of_the_import_rules() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(rule["layers"] for rule in rules if rule["name"] == "Imports point down only")
    rows = re.findall(r"^\| \d+ \| ((?:`\w+`(?:, )?)+) \|", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    shown = [set(re.findall(r"\w+", row)) for row in rows]
    assert shown == [set(re.findall(r"trainbox\.(\w+)", layer)) for layer in layers]


def test_the_readme_is_one_screen_and_installs_extras_that_there_are() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 80
    assert "Completed, exit code 0" in text
    extras = re.search(r"pip install '\.\[([a-z,]+)\]'", text)
    assert extras is not None
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras[1].split(","))
    for script in re.findall(r"^\$ python (\S+\.py)", text, re.MULTILINE):
        assert (ROOT / script).is_file()


def test_the_debugger_starts_the_script_of_the_page_as_the_page_does() -> None:
    (text,) = find_blocks(DOCS / "debugger-and-notebooks.md", "json")
    launch, attach = json.loads(text)["configurations"]
    (line,) = [line for line in find_commands(DOCS / "your-own-algorithm.md") if line.startswith("python ")]
    assert ["python", launch["program"].removeprefix("${workspaceFolder}/"), *launch["args"]] == shlex.split(line)
    assert attach["connect"]["port"] == 5678
    assert "5678" in example("debugger-and-notebooks.md", "debugpy.listen")
