"""What should never come, comes: each time a clear message, an exit code, a failure file, and nothing half-done."""

import json
import os
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.rights import WITH_RIGHTS_OF_MODES, needs_modes
from tests.support.trees import Run, Tree

pytestmark = pytest.mark.process

MARKER = "print('the script ran')\n"
CONFIGS = ["hyperparameters.json", "resourceconfig.json", "inputdataconfig.json", "checkpointconfig.json"]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with Tree(tmp_path / "ml") as built:
        yield built


def assert_refused(tree: Tree, run: Run, code: int, message: str) -> None:
    assert run.code == code, run.log
    assert run.failure is not None
    assert run.failure.startswith("ClientError: ")
    assert message in run.failure
    assert len(run.failure) <= 1024
    ours = "".join(f"trainbox: {line}\n" for line in f"FAILED: {run.failure}".split("\n"))
    assert run.log.endswith(ours)
    assert b"the script ran" not in run.stdout
    assert "Traceback" not in run.log
    assert tree.leftovers() == []


# -- the files of the platform -----------------------------------------------------------------------------------------

MALFORMED = {
    "empty": (b"", "the file is empty, expected a JSON object"),
    "truncated": (b'{"a": {"b": "c', "line 1 column 13: Unterminated string"),
    "a list": (b"[1]", "found a list, expected a JSON object"),
    "not UTF-8": (b'{"\xe9": 1}', "byte 2 is not UTF-8"),
    "a NUL inside": (b'{"a": {"b": "c\\u0000"}}', "key 'a': found a NUL or half a surrogate pair, expected text"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("content", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_config_file_is_named(tree: Tree, name: str, content: bytes, message: str) -> None:
    tree.program(MARKER).write(f"input/config/{name}", content)
    assert_refused(tree, tree.run(), 2, f"{tree.config / name}: {message}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "hyperparameters.json",
            {"processes_per_host": "many"},
            "key 'processes_per_host': found 'many', expected a whole number, 1 to 1024",
        ),
        (
            "resourceconfig.json",
            {"hosts": ["a"], "current_host": "b"},
            "key 'current_host': found 'b', expected one of",
        ),
        ("inputdataconfig.json", {"../up": {}}, "key '../up': expected a channel name"),
        ("checkpointconfig.json", {"LocalPath": []}, "Expected `str`, got `array` - at `$.LocalPath`"),
    ],
)
def test_a_wrong_entry_is_named(tree: Tree, name: str, content: object, message: str) -> None:
    tree.program(MARKER).write(f"input/config/{name}", json.dumps(content))
    assert_refused(tree, tree.run(), 2, message)


@pytest.mark.parametrize("launcher", ["plain", "torchrun"])
def test_a_port_that_is_none_is_named_before_anything_starts(tree: Tree, launcher: str) -> None:
    tree.program(MARKER).hyperparameters(processes_per_host=2, trainbox_launcher=launcher).hosts("one", "two")
    message = "the variable MASTER_PORT: found 'http', expected a number from 1 to 65535"
    assert_refused(tree, tree.run(MASTER_PORT="http"), 2, message)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_huge_config_file_is_not_read(tree: Tree, name: str) -> None:
    with (tree.program(MARKER).config / name).open("wb") as file:
        file.truncate(17 << 20)
    assert_refused(tree, tree.run(), 2, f"{tree.config / name}: found 17,825,792 bytes, expected a small JSON object")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_directory_in_the_place_of_a_config_file_is_named(tree: Tree, name: str) -> None:
    (tree.program(MARKER).config / name).mkdir()
    assert_refused(tree, tree.run(), 2, f"{tree.config / name}: found a directory, expected a file")


@needs_modes
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_file_that_may_not_be_read_is_named(tree: Tree, name: str) -> None:
    tree.program(MARKER).write(f"input/config/{name}", "{}", mode=0o000)
    assert_refused(
        tree, tree.run(prefix=WITH_RIGHTS_OF_MODES), 2, f"{tree.config / name}: cannot be read: Permission denied"
    )


def test_no_config_file_at_all_is_a_job_of_its_own(tree: Tree) -> None:
    tree.config.rmdir()
    run = tree.program(MARKER).run()
    assert (run.code, run.stdout) == (0, b"the script ran\n")
    assert "taking this to be the only host" in run.log


# -- hyperparameters ---------------------------------------------------------------------------------------------------

SHOWS = """
import json, os, sys
passed = {name: value for name, value in os.environ.items() if name.startswith("SM_")}
sys.stdout.write(json.dumps({"argv": sys.argv[1:], "env": passed}))
"""
NASTY = [
    *("it's", 'a "quoted" word', "$(touch PWNED)", "`touch PWNED`", "; touch PWNED #", "two\nlines\n"),
    *(
        "--flag",
        "-",
        "\ttab and  blanks ",
        "*",
        "~",
        "$HOME",
        "%s%n",
        "\\",
        "\\n",
        "\x1b[31m",
        "\x7f",
        "🚂🇪🇺 naïve",
        "\ufeff",
    ),
    *("x" * 2500, "🚂" * 2500),
]


class Shown(msgspec.Struct):
    """What the script says it was given."""

    argv: list[str]
    env: dict[str, str]


def shown(run: Run) -> Shown:
    assert run.code == 0, run.log
    return msgspec.json.decode(run.stdout, type=Shown)


def pairs(argv: list[str]) -> dict[str, str]:
    return dict(zip(argv[::2], argv[1::2], strict=True))


@pytest.mark.parametrize("encode", [str, json.dumps], ids=["as the API sends them", "as SDK v2 does"])
def test_values_arrive_exactly_and_nothing_is_evaluated(tree: Tree, encode: type[str]) -> None:
    values = {f"name{index}": value for index, value in enumerate(NASTY)}
    tree.program(SHOWS).hyperparameters_from({name: encode(value) for name, value in values.items()})
    found = shown(tree.run())
    assert pairs(found.argv) == {f"--{name}": value for name, value in values.items()}
    assert {name: found.env[f"SM_HP_{name.upper()}"] for name in values} == values
    assert not list(tree.root.rglob("PWNED"))


def test_names_arrive_exactly_and_nothing_is_evaluated(tree: Tree) -> None:
    names = [*NASTY[:-2], "a=b", "", "=", "with-dash", "with.dot"]
    tree.program(SHOWS).hyperparameters_from(dict.fromkeys(names, "v"))
    run = tree.run()
    found = shown(run)
    flags = {"" if not name else f"-{name}" if len(name) == 1 else f"--{name}" for name in names}
    assert set(found.argv[::2]) == flags
    assert set(found.argv[1::2]) == {"v"}
    assert json.loads(found.env["SM_HPS"]) == dict.fromkeys(names, "v")
    assert found.env["SM_HP_WITH_DASH"] == "v"
    assert "is no name of a variable: not set" in run.log
    assert not list(tree.root.rglob("PWNED"))


def test_a_shell_script_gets_them_exactly_too(tree: Tree) -> None:
    values = {f"name{index:02}": value for index, value in enumerate(NASTY)}
    tree.program('for word in "$@"; do printf \'%s\\0\' "$word"; done', "run.sh").hyperparameters_from(values)
    run = tree.run(SAGEMAKER_PROGRAM="run.sh")
    assert run.code == 0, run.log
    assert pairs(run.stdout.decode().split("\0")[:-1]) == {f"--{name}": value for name, value in values.items()}
    assert not list(tree.root.rglob("PWNED"))


def test_as_many_and_as_long_ones_as_sagemaker_permits_arrive(tree: Tree) -> None:
    values = {f"name{index:03}": "x" * 2500 for index in range(100)}
    run = tree.program(SHOWS).hyperparameters_from(values).run()
    assert pairs(shown(run).argv) == {f"--{name}": value for name, value in values.items()}
    assert "SM_HPS is longer than Linux passes in one variable" in run.log


def test_more_than_linux_passes_on_is_said(tree: Tree) -> None:
    values = {f"name-{index:03}": "🚂" * 7500 for index in range(100)}
    run = tree.program(MARKER).hyperparameters_from(values).run()
    assert_refused(tree, run, 3, "Argument list too long\nhint: hyperparameters and variables are longer together than")


UNUSABLE = ["a\0b", "half \ud83d", '"in JSON \\u0000"', '["\\udc80"]']


@pytest.mark.parametrize("pair", [*[{"api_token": value} for value in UNUSABLE], {"a\0b": "v"}, {"half \ud83d": "v"}])
def test_what_no_process_can_be_given_is_refused(tree: Tree, pair: dict[str, str]) -> None:
    tree.program(MARKER).write("input/config/hyperparameters.json", json.dumps(pair))
    assert_refused(tree, tree.run(), 2, "found a NUL or half a surrogate pair, expected text")


# -- a full disk -------------------------------------------------------------------------------------------------------

FILLS = """
import os
with open(os.environ["SM_MODEL_DIR"] + "/model.bin", "wb") as file:
    while True:
        file.write(bytes(65536))
"""
_NAMESPACES = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])


def mounting(script: str) -> list[str]:
    """A prefix that runs a shell script, which may mount, before `train`."""
    for namespace in _NAMESPACES:
        if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode == 0:
            return [*namespace, "sh", "-ec", script, "sh"]
    assert "CI" not in os.environ, "CI must be able to make a mount namespace"
    pytest.skip("this machine permits no mount namespace")


def test_a_full_disk_while_the_model_is_written_is_the_reason(tree: Tree) -> None:
    tree.program(FILLS).model.mkdir()
    run = tree.run(prefix=mounting('mount -t tmpfs -o size=1m none "$TRAINBOX_ROOT/model"; exec "$@"'))
    assert run.code == 1, run.log
    assert run.failure == (
        "OSError: [Errno 28] No space left on device\nat train.py:5 (exit code 1)\n"
        "hint: the disk is full: ask for a larger VolumeSizeInGB, or write less (fewer checkpoints kept)"
    )
    assert tree.leftovers() == []


def test_the_failure_file_is_written_though_its_own_disk_is_full(tree: Tree) -> None:
    """`/opt/ml` is one volume: the model that fills it leaves no room for the reason."""
    tree.program(FILLS).write("full/.keep", "").write("output/.keep", "")
    script = """
        mount -t tmpfs -o size=1m none "$TRAINBOX_ROOT/full"
        cp -r "$TRAINBOX_ROOT/code" "$TRAINBOX_ROOT/full/code"
        code=0
        TRAINBOX_ROOT="$TRAINBOX_ROOT/full" "$@" || code=$?
        ls -A "$TRAINBOX_ROOT/full/output"
        cp "$TRAINBOX_ROOT/full/output/failure" "$TRAINBOX_ROOT/output/failure"
        exit $code
    """
    run = tree.run(prefix=mounting(textwrap.dedent(script)))
    assert run.code == 1, run.log
    assert run.failure is not None
    assert run.failure.startswith("OSError: [Errno 28] No space left on device\nat train.py:5 (exit code 1)\nhint: ")
    assert run.stdout.split() == [b"data", b"failure"]


# -- secrets -----------------------------------------------------------------------------------------------------------

SECRETS = {
    "api_token": "tok-3141592653",
    "db-password": "p4ss'word 🚂",
    "clientSecret": "s3cr3t-2",
    "license.key": "k-271828",
}
VARIABLES = {"MY_CREDENTIAL": "cred-of-the-variable", "AWS_SECRET_ACCESS_KEY": "aws/secret+value"}
EVERY = [*SECRETS.values(), *VARIABLES.values()]


def ours(run: Run) -> str:
    """Our own lines of the log and the failure file."""
    return "\n".join([line for line in run.log.splitlines() if line.startswith("trainbox: ")] + [run.failure or ""])


def assert_no_secret(text: str) -> None:
    for value in EVERY:
        assert value not in text
        assert value[:-1] not in text, "half of one"


@pytest.mark.parametrize("encode", [str, json.dumps], ids=["as the API sends them", "as SDK v2 does"])
def test_secrets_of_an_exception_are_in_no_line_of_ours(tree: Tree, encode: type[str]) -> None:
    tree.hyperparameters_from({name: encode(value) for name, value in SECRETS.items()})
    tree.program("import os, sys\nraise ValueError(' '.join([*sys.argv, *os.environ.values()]))\n")
    run = tree.run(**VARIABLES)
    assert run.code == 1
    assert all(value.encode() in run.stderr for value in EVERY), "the script's own output is passed on as it is"
    assert_no_secret(ours(run))
    assert "***" in (run.failure or "")


@pytest.mark.parametrize("filler", range(560, 600, 3))
def test_no_half_of_a_secret_is_left_where_the_reason_is_cut(tree: Tree, filler: int) -> None:
    tree.hyperparameters_from(SECRETS)
    tree.program(f"echo {'x' * filler}tok-3141592653 >&2; exit 1", "run.sh")
    run = tree.run(SAGEMAKER_PROGRAM="run.sh")
    assert run.failure is not None
    assert "tok" not in run.failure


@pytest.mark.parametrize(
    "files",
    [
        {"code/train.py": "raise SystemExit('tok-3141592653')"},
        {"code/train.py": "", "code/requirements.txt": "--no-index\ntok-3141592653\n"},
        {"code/other.py": ""},
    ],
    ids=["exit message", "pip", "missing program"],
)
def test_secrets_are_in_no_error_of_ours(tree: Tree, files: dict[str, str]) -> None:
    tree.hyperparameters_from(SECRETS)
    for name, content in files.items():
        tree.write(name, content)
    program = "train.py" if "code/train.py" in files else "tok-3141592653"
    run = tree.run(SAGEMAKER_PROGRAM=program, **VARIABLES)
    assert run.code != 0
    assert_no_secret(ours(run))


def test_a_malformed_file_shows_nothing_of_a_secret_in_it(tree: Tree) -> None:
    tree.program(MARKER).write("input/config/hyperparameters.json", '{"api_token": tok-3141592653}')
    run = tree.run()
    assert_refused(tree, run, 2, "Expecting value, found 't'")
    assert_no_secret(ours(run))
