"""The toolkit as a script meets it: started by hand with flags, below a tree, and as a rank among several."""

import inspect
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trainbox
from trainbox.contract.params.script_flags import ScriptFlags, parse_flags
from trainbox.errors import DataError, HyperparameterError

SCRIPT = """
from typing import Annotated
import msgspec, trainbox

class Params(msgspec.Struct, frozen=True, kw_only=True):
    max_depth: Annotated[int, msgspec.Meta(ge=1, description="how deep")] = 3
    eta: float = 0.3
    name: str = ""

LOSS = trainbox.Metric("train:loss", "minimize")

if __name__ == "__main__":
    params = trainbox.hyperparameters(Params)
    print(params)
    print(sorted(trainbox.current_job().channels), trainbox.model_dir())
    trainbox.log(1, {LOSS: 0.5})
    trainbox.final({LOSS: 0.25})
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def run(
    script: Path, *arguments: str, root: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    given = {"PATH": "/usr/bin:/bin", **({"TRAINBOX_ROOT": str(root)} if root else {}), **(env or {})}
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=script.parent,
        env=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def tree(
    root: Path, hyperparameters: Mapping[str, str], hosts: tuple[str, ...] = ("algo-1",), host: str = "algo-1"
) -> Path:
    config = root / "input" / "config"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    (config / "resourceconfig.json").write_text(json.dumps({"hosts": hosts, "current_host": host}))
    (config / "inputdataconfig.json").write_text(json.dumps({"train": {"TrainingInputMode": "File"}}))
    return root


@pytest.mark.process
def test_a_script_runs_alone_with_flags(script: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    answer = run(script, "--max_depth", "5", "--eta=-1e-3", "--channel", "test=data", root=root)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[0] == "Params(max_depth=5, eta=-0.001, name='')"
    assert lines[1] == f"['test'] {root}/model"
    assert lines[2:] == ["[metrics] step=1 train:loss=0.5", "[metrics] final train:loss=0.25"]


@pytest.mark.process
def test_flags_win_over_the_file_and_the_file_over_defaults(script: Path, tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {"max-depth": "7", "eta": "0.1", "sagemaker_program": "x.py"})
    answer = run(script, "--max_depth=9", root=root)
    assert answer.stdout.splitlines()[0] == "Params(max_depth=9, eta=0.1, name='')", answer.stderr


@pytest.mark.process
def test_arguments_the_supervisor_wrote_are_not_read_again(script: Path, tmp_path: Path) -> None:
    """`None` and `[1, 'a']` in the toolkit's encoding are not what the request said; the file is."""
    root = tree(tmp_path / "root", {"name": '"0123"', "eta": "0.1"})
    arguments = ["--eta", "0.1", "--name", "somebody else's encoding"]
    answer = run(script, *arguments, root=root, env={"SM_USER_ARGS": json.dumps(arguments)})
    assert answer.stdout.splitlines()[0] == "Params(max_depth=3, eta=0.1, name='0123')", answer.stderr


@pytest.mark.process
def test_help_shows_the_hyperparameters(script: Path, tmp_path: Path) -> None:
    answer = run(script, "--help", root=tmp_path)
    assert answer.returncode == 0
    assert "max_depth" in answer.stdout
    assert "how deep" in answer.stdout


@pytest.mark.process
def test_a_script_without_any_container_says_where_its_results_go(script: Path, tmp_path: Path) -> None:
    if Path("/opt/ml/input").is_dir():
        pytest.fail("this machine has a real /opt/ml/input: the test would write there")
    answer = run(script)
    assert answer.returncode == 0, answer.stderr
    assert "this script runs alone" in answer.stderr
    assert len(list(tmp_path.glob("trainbox-out/script-*/model"))) == 1
    assert (tmp_path / "trainbox-out/.gitignore").read_text() == "*\n"


@pytest.mark.process
def test_a_channel_the_job_does_not_have_names_those_it_has(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text("import trainbox\ntrainbox.channel('validation')")
    answer = run(script, root=tree(tmp_path / "root", {}))
    assert answer.returncode == 7, "DataError's own, though the script let it pass"
    assert "the job has no channel 'validation'; its channels: train" in answer.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("host", "env", "speaks"),
    [
        ("algo-1", {}, True),
        ("algo-2", {}, False),
        ("algo-2", {"RANK": "0"}, True),
        ("algo-1", {"RANK": "7"}, False),
        ("algo-1", {"LOCAL_RANK": "1", "WORLD_SIZE": "4"}, False),
    ],
)
def test_only_rank_0_logs_metrics(tmp_path: Path, script: Path, host: str, env: dict[str, str], speaks: bool) -> None:
    answer = run(script, root=tree(tmp_path / "root", {}, hosts=("algo-1", "algo-2"), host=host), env=env)
    assert answer.returncode == 0, answer.stderr
    assert ("[metrics]" in answer.stdout) is speaks


@pytest.mark.process
def test_a_hook_that_the_script_sets_stays(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "import sys, msgspec, trainbox\n"
        "class Params(msgspec.Struct): pass\n"
        "trainbox.hyperparameters(Params)\n"
        "assert sys.excepthook is not sys.__excepthook__\n"
        "def own(*_): print('own')\n"
        "sys.excepthook = own\n"
        "trainbox.hyperparameters(Params)\n"
        "trainbox.current_job()\n"
        "trainbox.channel('validation')\n"
    )
    answer = run(script, root=tree(tmp_path / "root", {}))
    assert (answer.returncode, answer.stdout) == (1, "own\n"), answer.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("trainbox.Metric('a b', 'maximize')", 9),
        ("trainbox.Metric('auc', 'best')", 9),
        ("trainbox.log(-1, {trainbox.Metric('auc', 'maximize'): 0.5})", 9),
        ("trainbox.log(1, {})", 9),
        ("trainbox.final({'auc': 0.5})", 9),
        ("import pathlib, trainbox.data; trainbox.data.read_table(pathlib.Path('none'))", 7),
    ],
)
def test_an_error_of_ours_ends_a_script_with_its_code_however_early_it_comes(
    tmp_path: Path, text: str, code: int
) -> None:
    script = tmp_path / "s.py"
    script.write_text(f"import trainbox\n{text}\n")
    answer = run(script, root=tree(tmp_path / "root", {}))
    assert answer.returncode == code, answer.stderr
    assert "Error: " in answer.stderr


@pytest.mark.process
def test_a_hook_that_was_set_before_the_error_stays(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "import sys, trainbox\ndef own(*_): print('own')\nsys.excepthook = own\ntrainbox.Metric('a b', 'maximize')\n"
    )
    answer = run(script, root=tree(tmp_path / "root", {}))
    assert (answer.returncode, answer.stdout) == (1, "own\n"), answer.stderr


@pytest.mark.process
def test_a_program_that_the_script_starts_has_flags_of_its_own(tmp_path: Path, script: Path) -> None:
    root, env = tree(tmp_path / "root", {"eta": "0.5"}), {"SM_USER_ARGS": '["--eta", "0.5", "--name", "x"]'}
    assert "max_depth=3, eta=0.5, name=''" in run(script, "--eta", "0.5", "--name", "x", root=root, env=env).stdout
    assert "max_depth=4, eta=0.5, name=''" in run(script, "--max_depth", "4", root=root, env=env).stdout


@pytest.mark.process
def test_a_rank_that_is_no_number_is_named(tmp_path: Path, script: Path) -> None:
    answer = run(script, root=tree(tmp_path / "root", {}), env={"RANK": "first"})
    assert answer.returncode == 2
    assert "ContractError: the variable RANK: found 'first', expected a whole number, 0 or more" in answer.stderr


@pytest.mark.process
def test_a_stop_is_a_flag_and_a_deadline(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "import os, signal, trainbox\n"
        "assert not trainbox.stop_requested() and trainbox.seconds_left() is None\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "assert trainbox.stop_requested()\n"
        "print(round(trainbox.seconds_left()))\n"
    )
    answer = run(script, root=tree(tmp_path / "root", {}), env={"TRAINBOX_GRACE_SECONDS": "42"})
    assert (answer.returncode, answer.stdout) == (0, "42\n"), answer.stderr


@pytest.mark.process
def test_checkpoints_lie_where_the_request_says(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {})
    (root / "input/config/checkpointconfig.json").write_text('{"LocalPath": "/opt/ml/checkpoint"}')
    script = tmp_path / "s.py"
    script.write_text(
        "import trainbox\n"
        "store = trainbox.checkpoints()\n"
        "with store.writing(step=3) as directory:\n"
        "    (directory / 'state').write_text('here')\n"
        "found = store.latest()\n"
        "print(found.step, (found.path / 'state').read_text(), found.path.parent)\n"
    )
    answer = run(script, root=root)
    assert answer.stdout == f"3 here {root}/checkpoint\n", answer.stderr


names = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True).filter(lambda name: name != "channel")


@given(
    st.dictionaries(
        names,
        st.one_of(st.integers().map(str), st.floats().map(str), st.text().filter(lambda t: not t.startswith("-"))),
    )
)
def test_any_flags_are_read_back(values: dict[str, str]) -> None:
    spaced = [part for name, value in values.items() for part in (f"--{name}", value)]
    joined = [f"--{name}={value}" for name, value in values.items()]
    assert parse_flags(spaced).hyperparameters == values
    assert parse_flags(joined).hyperparameters == values


def test_a_bare_flag_is_true_and_a_negative_number_is_a_value() -> None:
    assert parse_flags(["--verbose", "--x", "-1e-3", "-k", "5"]).hyperparameters == {
        "verbose": "true",
        "x": "-1e-3",
        "k": "5",
    }


def test_channels_are_no_hyperparameters() -> None:
    assert parse_flags(["--channel", "a=x", "--channel=b=y=z"]) == ScriptFlags({}, {"a": Path("x"), "b": Path("y=z")})


@pytest.mark.parametrize(
    "arguments", [["train.csv"], ["--x", "1", "2"], ["--channel", "train"], ["--channel"], ["-"], ["--"]]
)
def test_what_is_no_flag_is_refused(arguments: list[str]) -> None:
    with pytest.raises(HyperparameterError):
        parse_flags(arguments)


EXAMPLES = """
import doctest, json, os, signal, sys
from typing import Annotated
import msgspec, trainbox, trainbox.toolkit
names = {"json": json, "msgspec": msgspec, "os": os, "signal": signal, "trainbox": trainbox, "Annotated": Annotated}
done = doctest.testmod(trainbox.toolkit, extraglobs=names, optionflags=doctest.ELLIPSIS)
print(done.attempted, "examples")
sys.exit(1 if done.failed else 0)
"""


@pytest.mark.process
def test_the_example_of_every_function_runs(tmp_path: Path) -> None:
    functions = [name for name in trainbox.__all__ if inspect.isfunction(inspect.unwrap(getattr(trainbox, name)))]
    for name in functions:
        assert ">>> " in str(getattr(trainbox, name).__doc__), f"trainbox.{name} has no example"
    root = tree(tmp_path / "root", {"epochs": "3"})
    channels = {"train": {"TrainingInputMode": "File"}, "validation": {"TrainingInputMode": "File"}}
    (root / "input/config/inputdataconfig.json").write_text(json.dumps(channels))
    script = tmp_path / "examples.py"
    script.write_text(EXAMPLES)
    answer = run(script, root=root)
    assert answer.returncode == 0, answer.stdout
    assert int(answer.stdout.split()[-2]) >= 2 * len(functions) - 4


@pytest.mark.process
def test_raw_arguments_of_the_request_are_flags_of_a_script_with_typed_hyperparameters(
    script: Path, tmp_path: Path
) -> None:
    raw = ["--max-depth", "7", "--name=two words"]
    values = {"max_depth": "5", "eta": "0.1", "trainbox_raw_arguments": json.dumps(raw)}
    made = ["--eta", "0.1", "--max_depth", "5", *raw]
    answer = run(script, *made, root=tree(tmp_path, values), env={"SM_USER_ARGS": json.dumps(made)})
    assert "Params(max_depth=7, eta=0.1, name='two words')" in answer.stdout, answer.stderr


@pytest.mark.process
def test_a_script_with_a_parser_of_its_own_can_ask_for_its_job(tmp_path: Path) -> None:
    script = tmp_path / "hydra.py"
    script.write_text("import sys, trainbox\nprint(trainbox.current_job().hosts, sys.argv[1:])\n")
    answer = run(script, "config.py", "lr=0.1", "+a=b", root=tree(tmp_path, {}))
    assert answer.stdout == "('algo-1',) ['config.py', 'lr=0.1', '+a=b']\n", answer.stderr


@pytest.mark.process
@pytest.mark.parametrize("flag", ["--chanel", "--channels"])
def test_a_misspelt_channel_is_no_unknown_hyperparameter(script: Path, tmp_path: Path, flag: str) -> None:
    answer = run(script, flag, "train=data", root=tmp_path / "root")
    assert answer.returncode == 6
    assert f"script.py has no flag {flag} - did you mean '--channel'?\n" in answer.stderr


@pytest.mark.process
def test_an_error_of_ours_with_a_hint_is_told_without_a_traceback(script: Path, tmp_path: Path) -> None:
    answer = run(script, "--max_dept", "5", root=tmp_path / "root")
    assert answer.returncode == 6
    line = SCRIPT.split("\n").index("    params = trainbox.hyperparameters(Params)") + 1
    assert answer.stderr == (
        "trainbox: FAILED: ClientError: HyperparameterError: hyperparameter 'max_dept' is not known to script.py"
        " - did you mean 'max_depth'?\n"
        "trainbox: hint: `trainbox describe script.py` lists every hyperparameter\n"
        f"trainbox: at script.py:{line}\n"
    )


@pytest.mark.process
def test_an_error_of_ours_without_a_hint_keeps_its_traceback(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "import trainbox\nfrom trainbox.errors import DataError\ntrainbox.current_job()\nraise DataError('x')"
    )
    answer = run(script, root=tree(tmp_path / "root", {}))
    assert answer.returncode == 7
    assert answer.stderr.startswith("Traceback ")
    assert answer.stderr.endswith("trainbox.errors.DataError: x\n")


def test_a_channel_that_is_spelt_in_another_way_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINBOX_ROOT", str(tree(tmp_path / "root", {})))
    trainbox.current_job.cache_clear()
    try:
        with pytest.raises(DataError, match="no channel 'trian' - did you mean 'train'\\?; its channels: train"):
            trainbox.channel("trian")
    finally:
        trainbox.current_job.cache_clear()
