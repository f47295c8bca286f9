"""Which program runs and where its code comes from: decided from the request, then looked up in the fetched code."""

import itertools
import os
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import msgspec

from trainbox.contract.job import Job, below
from trainbox.contract.text import did_you_mean, short
from trainbox.errors import ProgramError

_MODULE_NAME = re.compile(r"[A-Za-z_]\w*(?:/[A-Za-z_]\w*)*\.py")
_BUILD_TABLE = re.compile(r"^[ \t]*\[build-system\]", re.MULTILINE)
_MOST_NAMES_SHOWN = 20
#: Of those that a misspelt name is compared with.
_MOST_NAMES_READ = 10_000
#: Of a pyproject.toml, in characters.
_LONGEST_PROJECT = 1_000_000
#: The bundled script that is written for ranks.
BUNDLED = "pytorch_train.py"
#: The bundled script of which every GPU has a process.
XGBOOST = "xgboost_train.py"
#: The bundled scripts that have ranks and restarts of their own kind, or none.
TREES = (XGBOOST, "random_forest_train.py")
#: What a script imports that has a session.
_SESSION = "trainbox.torch"
#: What a script imports that connects to the other processes of its job, as the bundled `TREES` do.
_PEERS = ("trainbox.comm", "trainbox.xgboost", "trainbox.sklearn")


class CodeSource(msgspec.Struct, frozen=True):
    """Where code comes from."""

    #: `place`: it lies there already; the others are fetched into the code directory.
    kind: Literal["s3", "archive", "directory", "place"]
    location: str


class Choice(msgspec.Struct, frozen=True):
    """What the request asks for, before anything is fetched."""

    name: str
    source: CodeSource
    bundled: bool = False
    #: Whether it is the name of a module.
    is_module: bool = False


class Program(msgspec.Struct, frozen=True):
    """The program to start."""

    name: str
    #: The arguments before those of the hyperparameters; the first is the executable.
    command: tuple[str, ...]
    #: The working directory: the root of the user's code.
    directory: Path
    #: What pip installs first (`requirements.txt`, `.`), empty where nothing is asked for.
    install: tuple[str, ...] = ()
    #: Its file that imports `trainbox.torch`; empty where none is known to.
    session: str = ""
    #: Whether its processes may have to prove themselves to each other: they get the key of the job, if it has one.
    needs_key: bool = False

    @property
    def is_python(self) -> bool:
        """Whether it is a Python script or module."""
        return self.command[0] == sys.executable


def bundled_directory() -> Path:
    """Return the directory of the bundled scripts: in the installed package, or next to it in a checkout."""
    package = Path(__file__).parents[2]
    installed = package / "train_scripts"
    return installed if installed.is_dir() else package.parents[1] / "train_scripts"


def bundled_scripts() -> dict[str, Path]:
    """Return the bundled scripts by name (`xgboost_train`), sorted."""
    return {path.stem: path for path in sorted(bundled_directory().glob("*.py"))}


def find_bundled(name: str) -> Path:
    """Return a bundled script by its name: `xgboost_train`, `xgboost_train.py` and `xgboost` are the same.

    Raises:
        ProgramError: There is no such script; the message lists those there are.
    """
    scripts = bundled_scripts()
    found = same_script(name, scripts)
    if found is not None:
        return scripts[found]
    raise ProgramError(
        f"there is no bundled script {short(name)}{did_you_mean(name.removesuffix('.py'), scripts)}",
        hint="the bundled scripts: " + (", ".join(scripts) or "none"),
    )


def same_script(name: str, scripts: Collection[str]) -> str | None:
    """Pure: find the script that a name means, as `find_bundled` does; None if there is none."""
    stem = name.removesuffix(".py")
    candidates = (stem, stem.replace("-", "_"), f"{stem}_train", f"{stem}_train".replace("-", "_"))
    return next((candidate for candidate in candidates if candidate in scripts), None)


def choose(job: Job) -> Choice:
    """Pure: return the program that the request asks for, and the source of its code.

    The hyperparameter `sagemaker_program` wins over the variable `SAGEMAKER_PROGRAM` (`read_job` sees to that): the one
    comes with the job, the other may be left over in the image.

    Raises:
        ProgramError: The request names no program; the message lists the choices.
    """
    settings = job.settings
    if settings.module:
        return Choice(settings.module, _source(job), is_module=True)
    if settings.program:
        return Choice(settings.program, _source(job))
    if settings.script:
        script = find_bundled(settings.script)
        return Choice(script.name, CodeSource("place", str(script.parent)), bundled=True)
    raise ProgramError(
        "the job names no program to run",
        hint="set the hyperparameter sagemaker_program (with sagemaker_submit_directory; SDK v2 does both from"
        " entry_point and source_dir), trainbox_module to a module of the source, or trainbox_script / the variable"
        " TRAINBOX_SCRIPT to one of: " + (", ".join(bundled_scripts()) or "no script is bundled here"),
    )


def _source(job: Job) -> CodeSource:
    location = job.settings.submit_directory
    if location and location.startswith("s3://"):
        return CodeSource("s3", location)
    if location:
        path = below(job.layout, Path(location.removeprefix("file://")))
        return (
            CodeSource("place", str(path)) if path == job.layout.code_dir else CodeSource(_local_kind(path), str(path))
        )
    if "code" in job.channels:
        return CodeSource("directory", str(job.channels["code"].path))
    return CodeSource("place", str(job.layout.code_dir))


def _local_kind(path: Path) -> Literal["archive", "directory"]:
    return "archive" if path.suffix in {".gz", ".tgz", ".tar", ".bz2", ".xz"} else "directory"


def resolve(choice: Choice, directory: Path) -> Program:
    """Find the program in its fetched code, and the command that starts it.

    Raises:
        ProgramError: It is not there, lies outside the code, or cannot be executed.
    """
    if choice.is_module:
        return _module_program(choice.name, directory)
    path = _inside(choice.name, directory)
    name = str(path.relative_to(directory))
    if name.endswith(".py"):
        return _python_program(name, directory, bundled=choice.bundled)
    from trainbox.supervisor.program.executable import command_of  # noqa: PLC0415 - most programs are Python

    return Program(
        name=choice.name,
        command=command_of(path, name),
        directory=directory,
        install=() if choice.bundled else find_requirements(name, directory),
    )


def _inside(name: str, directory: Path) -> Path:
    try:
        root = directory.resolve()
        path = (root / name).resolve()
        is_there = path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long for Linux, or links that lead in a communicator
        reason = error.strerror if isinstance(error, OSError) else "a link leads in a communicator"
        raise ProgramError(
            f"the program {short(name)} cannot be looked up in {directory}: {reason}",
            hint="sagemaker_program is the path of a file inside the source, as in 'train.py'",
        ) from error
    if not path.is_relative_to(root) or path == root:
        raise ProgramError(
            f"the program {short(name)} lies outside its code in {directory}",
            hint="name it as 'train.py', and its directory as sagemaker_submit_directory",
        )
    if not is_there:
        names = _names(directory)
        raise ProgramError(
            f"there is no program {short(name)} in {directory}{did_you_mean(name, names)}",
            hint="found there: " + (", ".join(names[:_MOST_NAMES_SHOWN]) or "nothing"),
        )
    return directory / path.relative_to(root)


def _names(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    found = itertools.islice((path for path in directory.rglob("*") if path.is_file()), _MOST_NAMES_READ)
    try:
        return sorted(str(path.relative_to(directory)) for path in found)
    except (OSError, RecursionError):  # a tree nested deeper than can be walked
        return []


def _python_program(name: str, directory: Path, *, bundled: bool) -> Program:
    """A script, or a module of a package where the code is one (`setup.py`, or a `pyproject.toml` that builds)."""
    session = "" if bundled and name in {BUNDLED, *TREES} else find_session(directory / name, directory)
    if bundled:
        return Program(name=name, command=(sys.executable, name), directory=directory, session=session)
    install = find_requirements(name, directory)
    if "." in install:
        command = (sys.executable, "-m", name.removesuffix(".py").replace("/", "."))
        return Program(name=name, command=command, directory=directory, install=install, session=session)
    # A name that begins with a dash must not be read as an option.
    script = f"./{name}" if name.startswith("-") else name
    return Program(name=name, command=(sys.executable, script), directory=directory, install=install, session=session)


def _module_program(module: str, directory: Path) -> Program:
    """A module as `python -m` runs it: of the code, or of a package that is installed, or will be.

    Raises:
        ProgramError: It is not there.
    """
    install = find_module_requirements(directory)
    file = find_module(module, directory)
    if file is None and not install and not _is_importable(module.partition(".")[0]):
        names = [name.removesuffix(".py").replace("/", ".") for name in _names(directory) if name.endswith(".py")]
        raise ProgramError(
            f"there is no module {short(module)} in {directory}{did_you_mean(module, names)}",
            hint="name it as `python -m` has it, from the root of the source: package.train for package/train.py",
        )
    return Program(
        name=module if file is None else str(file.relative_to(directory)),
        command=(sys.executable, "-m", module),
        directory=directory,
        install=install,
        session="" if file is None else find_session(file, directory),
    )


def find_module(module: str, directory: Path) -> Path | None:
    """Return the file that `python -m` runs for a module of the code; None if the code has no such module."""
    path = Path(*module.split("."))
    places = (root / file for root in (directory, directory / "src") for file in (f"{path}.py", path / "__main__.py"))
    return next((file for file in places if os.path.isfile(file)), None)  # noqa: PTH113 - a name too long names none


def find_session(entry: Path, directory: Path) -> str:
    """Return the file of a program that imports `trainbox.torch`; empty if none does."""
    from trainbox.supervisor.program.imports import find_import  # noqa: PLC0415 - the bundled scripts need no parser

    return find_import(entry, directory, _SESSION)


def needs_key(program: Program, directory: Path) -> bool:
    """Return whether a program may connect to the other processes of its job by `trainbox.comm`.

    Only a Python file says that it does not: a shell script or an installed module may start anything.

    Args:
        program: What is started.
        directory: Where its code lies.
    """
    from trainbox.supervisor.program.imports import find_import  # noqa: PLC0415 - a job without a key needs no parser

    if not program.is_python or not program.name.endswith(".py"):
        return True
    return bool(find_import(directory / program.name, directory, *_PEERS))


def _is_importable(package: str) -> bool:
    import importlib.util  # noqa: PLC0415 - for a module that is none of the source alone

    return importlib.util.find_spec(package) is not None


def _is_package(directory: Path) -> bool:
    if (directory / "setup.py").is_file():
        return True
    project = directory / "pyproject.toml"
    # One that only lists dependencies or configures a linter is no package (uv decides the same way).
    if not project.is_file():
        return False
    with project.open(encoding="utf-8", errors="replace") as file:
        return bool(_BUILD_TABLE.search(file.read(_LONGEST_PROJECT)))


def find_requirements(name: str, directory: Path) -> tuple[str, ...]:
    """Return what pip installs before the user's program runs: the code if it is a package, and its requirements."""
    if name.endswith(".py") and _MODULE_NAME.fullmatch(name):
        return find_module_requirements(directory)
    return _listed(directory)


def find_module_requirements(directory: Path) -> tuple[str, ...]:
    """Return what pip installs before a module runs by its name."""
    return ((".",) if _is_package(directory) else ()) + _listed(directory)


def _listed(directory: Path) -> tuple[str, ...]:
    return ("-r", "requirements.txt") if (directory / "requirements.txt").is_file() else ()
