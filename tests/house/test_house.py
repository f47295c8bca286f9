"""The rules of the house that a machine can check: imports, side effects, the environment, the public surface."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import trainbox
from tests.support.forks import content, fork, own_environment
from tests.support.syntax import dotted, nodes
from trainbox import errors

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "container" / "trainbox"
MODULES = sorted(PACKAGE.rglob("*.py"))


def all_nodes() -> Iterator[tuple[str, ast.AST]]:
    """Each with the file that it is of, the module itself first."""
    for path in MODULES:
        file = str(path.relative_to(PACKAGE))
        for node in nodes(path):
            yield file, node


def calls(name: str) -> list[str]:
    """The files that call a function by its bare name, once for each call."""
    return [file for file, node in all_nodes() if isinstance(node, ast.Call) and dotted(node.func) == name]


@pytest.mark.process
@pytest.mark.long  # `make lint` looks, too
def test_imports_point_down_only() -> None:
    answer = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout
    assert "0 broken" in answer.stdout


#: The entries of programs, which alone ask for the environment, and hand on what those below need.
READERS_OF_THE_ENVIRONMENT = (
    "cli/describe.py",  # the verb `describe`
    "cli/metrics.py",  # the verb `metrics`
    "cli/run.py",  # the verb `run`
    "cli/serve.py",  # the verb `serve`
    "cli/transform.py",  # the verb `transform`
    "cli/tune.py",  # the verb `tune`
    "health/collective_ranks.py",  # the program of the ranks of a check
    "health/command.py",  # the verb `health`, which the supervisor starts, too
    "launcher/__main__.py",  # the agent of a host
    "launcher/ranks/program.py",  # a forked rank: from here on it is the script's process
    "local/overlays/build_overlay.py",  # what installs the requirements of a local job
    "local/run_job.py",  # what a program calls
    "serving/__main__.py",  # the loader of an endpoint
    "supervisor/serve.py",  # the supervisor of an endpoint
    "supervisor/train.py",  # the supervisor of a job
    "toolkit.py",  # what a script calls
    "torch/integration.py",  # what a script calls for the loop of a library
    "torch/start_session.py",  # `session`, which a script calls
)


def test_the_environment_is_asked_for_where_programs_begin_and_nowhere_below() -> None:
    name = "read_environment"
    users = {
        file
        for file, node in all_nodes()
        if (isinstance(node, ast.alias) and node.name == name)
        or (isinstance(node, ast.Attribute) and node.attr == name)
    }
    assert sorted(users) == list(READERS_OF_THE_ENVIRONMENT)
    # A script's functions are called in any order: each is an entry.
    assert sorted(file for file in calls(name) if file != "toolkit.py") == sorted(users - {"toolkit.py"})


def test_the_environment_is_read_in_one_place() -> None:
    readers = [
        name
        for name, node in all_nodes()
        if (isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv", "putenv"})
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {"environ", "getenv"} & {a.name for a in node.names}
        )
    ]
    # The driver is a program by itself, without any of this package; it hands on a secret, which no argument may be.
    assert readers == ["contract/job.py", "sagemaker/driver/trainbox_driver.py"]


def test_hyperparameters_are_decoded_and_written_as_arguments_once() -> None:
    assert [file for file in calls("decode") if file.startswith(("contract/job", "supervisor/"))] == ["contract/job.py"]
    # The others are pip's.
    assert calls("arguments") == ["contract/job.py", "local/overlays/build_overlay.py", "supervisor/requirements.py"]


def test_one_broad_except_in_each_program_and_for_what_escapes_a_model() -> None:
    broad = [
        f"{name}:{node.lineno}"
        for name, node in all_nodes()
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}))
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
    ]
    assert [place.partition(":")[0] for place in broad] == [
        "serving/multi/trial.py",
        "serving/predictions.py",
        "supervisor/serve.py",
        "supervisor/train.py",
    ]


def test_no_command_goes_through_a_shell() -> None:
    shells = [
        f"{name}:{node.lineno}"
        for name, node in all_nodes()
        if isinstance(node, ast.Call)
        and (
            any(keyword.arg == "shell" for keyword in node.keywords)
            or dotted(node.func) in {"os.system", "os.popen", "eval", "exec", "subprocess.getoutput"}
        )
    ]
    assert shells == []


def test_every_module_and_public_function_says_what_it_is_for() -> None:
    modules = [(name, node) for name, node in all_nodes() if isinstance(node, ast.Module)]
    assert len(modules) == len(MODULES)
    assert not [name for name, tree in modules if not ast.get_docstring(tree)]


def test_no_file_and_no_function_is_too_long_to_see_whole() -> None:
    long = [str(path.relative_to(PACKAGE)) for path in MODULES if path.read_text().count("\n") > 350]
    for name, node in all_nodes():
        if isinstance(node, ast.FunctionDef):
            docstring = len((ast.get_docstring(node, clean=False) or "").splitlines())
            if (node.end_lineno or 0) - node.lineno - docstring > 55:
                long.append(f"{name}: {node.name}")
    assert not long


def test_a_public_class_name_occurs_once_in_the_package() -> None:
    """One name for one idea: a reader who looks for it finds one class. Type variables and aliases are no classes."""
    places: dict[str, list[str]] = {}
    for file, node in all_nodes():
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            places.setdefault(node.name, []).append(f"{file}:{node.lineno}")
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_a_room_has_at_most_fifteen_modules() -> None:
    """Where it needs more, a sub-package with a purpose of its own holds them."""
    rooms = Counter(path.parent.relative_to(PACKAGE) for path in MODULES if not path.stem.startswith("__"))
    assert not {str(room): count for room, count in rooms.items() if count > 15}


def test_the_public_names_are_sorted_and_all_there() -> None:
    assert trainbox.__all__ == sorted(trainbox.__all__)
    for name in trainbox.__all__:
        value = getattr(trainbox, name)
        assert not inspect.ismodule(value), f"trainbox.{name} is a module: it hides the name"
        assert value.__doc__, f"trainbox.{name} has no docstring"


@pytest.mark.process
def test_importing_any_module_hides_no_public_name() -> None:
    found = [
        info.name for info in pkgutil.walk_packages([str(PACKAGE)], "trainbox.") if "train_scripts" not in info.name
    ]
    code = (
        "import importlib, inspect, trainbox\n"
        f"for name in {[name for name in found if not name.endswith('__main__')]!r}: importlib.import_module(name)\n"
        "assert not [name for name in trainbox.__all__ if inspect.ismodule(getattr(trainbox, name))]\n"
    )
    with tempfile.TemporaryFile() as said:  # libraries take ten times as long to import as we do, and are there
        ended = fork(code, argv=[""], environment=own_environment(), directory=ROOT, stdout=said, stderr=said)
        assert ended.wait() == 0, content(said)


@pytest.mark.process
def test_importing_the_package_does_nothing_else() -> None:
    """No file is made, no variable set, no thread started, no handler installed, and nothing is printed."""
    code = (
        "import os, signal, sys, threading\n"
        "def state(): return dict(os.environ), [signal.getsignal(n) for n in (2, 15, 17)], os.listdir('.')\n"
        "before = state()\n"
        "import trainbox.toolkit, trainbox.supervisor.train, trainbox.cli\n"
        "assert before == state()\n"
        "assert threading.active_count() == 1\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


@pytest.mark.process
def test_the_supervisor_loads_no_library_but_msgspec() -> None:
    code = "import sys, trainbox.supervisor.train; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    third_party = {"boto3", "numpy", "pandas", "pyarrow", "rich", "sklearn", "torch", "xgboost"}
    assert not third_party & set(ast.literal_eval(loaded))


def test_the_docstring_of_the_error_tree_is_the_tree() -> None:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.TrainboxError)]
    drawn = {
        line.split()[1]: int(line.split()[2])
        for line in str(errors.__doc__).splitlines()
        if line.strip().startswith(("├", "└"))
    }
    assert drawn == {cls.__name__: cls.exit_code for cls in classes if cls is not errors.TrainboxError}
    assert len(set(drawn.values())) == len(drawn)


def test_the_version_is_the_projects() -> None:
    metadata = importlib.import_module("importlib.metadata")
    assert trainbox.__version__ == metadata.version("trainbox")
