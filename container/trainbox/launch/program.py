"""Which program runs and where its code comes from: decided from the request, then looked up in the fetched code."""

import itertools
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from trainbox.contract.job import Job, below
from trainbox.contract.text import short
from trainbox.errors import ProgramError

_MODULE_NAME = re.compile(r"[A-Za-z_]\w*(?:/[A-Za-z_]\w*)*\.py")
_BUILD_TABLE = re.compile(r"^[ \t]*\[build-system\]", re.MULTILINE)
_MOST_NAMES_SHOWN = 20
#: Of those that a misspelt name is compared with.
_MOST_NAMES_READ = 10_000
#: Of a pyproject.toml, in characters.
_LONGEST_PROJECT = 1_000_000
#: Linux reads no more of a script's first line (BINPRM_BUF_SIZE).
_LONGEST_FIRST_LINE = 256


class Source(msgspec.Struct, frozen=True):
    """Where code comes from."""

    #: `place`: it lies there already; the others are fetched into the code directory.
    kind: Literal["s3", "archive", "directory", "place"]
    location: str


class Choice(msgspec.Struct, frozen=True):
    """What the request asks for, before anything is fetched."""

    name: str
    source: Source
    bundled: bool = False


class Program(msgspec.Struct, frozen=True):
    """What is started."""

    name: str
    #: The arguments before those of the hyperparameters; the first is the executable.
    command: tuple[str, ...]
    #: The working directory: the root of the user's code.
    directory: Path
    #: What pip installs first (`requirements.txt`, `.`), empty where nothing is asked for.
    install: tuple[str, ...] = ()


def bundled_directory() -> Path:
    """Where the bundled scripts lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "train_scripts"
    return installed if installed.is_dir() else package.parents[1] / "train_scripts"


def bundled_scripts() -> dict[str, Path]:
    """The bundled scripts by name (`xgboost_train`), sorted."""
    return {path.stem: path for path in sorted(bundled_directory().glob("*.py"))}


def find_bundled(name: str) -> Path:
    """A bundled script by its name: `xgboost_train`, `xgboost_train.py` and `xgboost` are the same.

    Raises:
        ProgramError: There is no such script; the message lists those there are.
    """
    scripts = bundled_scripts()
    stem = name.removesuffix(".py")
    for candidate in (stem, f"{stem}_train", f"{stem}_train".replace("-", "_")):
        if candidate in scripts:
            return scripts[candidate]
    raise ProgramError(
        f"there is no bundled script {short(name)}{_did_you_mean(stem, scripts)}",
        hint="the bundled scripts: " + (", ".join(scripts) or "none"),
    )


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    import difflib  # noqa: PLC0415 - only a job that fails has three milliseconds for it

    close = difflib.get_close_matches(name, names, n=1)
    return f" - did you mean {close[0]!r}?" if close else ""


def choose(job: Job) -> Choice:
    """Pure: the program the request asks for, and where its code is to come from.

    The hyperparameter `sagemaker_program` wins over the variable `SAGEMAKER_PROGRAM` (`read_job` sees to that): the one
    comes with the job, the other may be left over in the image.

    Raises:
        ProgramError: The request names no program; the message lists the choices.
    """
    settings = job.settings
    if settings.program:
        return Choice(settings.program, _source(job))
    if settings.script:
        script = find_bundled(settings.script)
        return Choice(script.name, Source("place", str(script.parent)), bundled=True)
    raise ProgramError(
        "the job names no program to run",
        hint="set the hyperparameter sagemaker_program (with sagemaker_submit_directory; SDK v2 does both from"
        " entry_point and source_dir), or trainbox_script / the variable TRAINBOX_SCRIPT to one of: "
        + (", ".join(bundled_scripts()) or "no script is bundled here"),
    )


def _source(job: Job) -> Source:
    location = job.settings.submit_directory
    if location and location.startswith("s3://"):
        return Source("s3", location)
    if location:
        path = below(job.layout, Path(location.removeprefix("file://")))
        return Source("place", str(path)) if path == job.layout.code_dir else Source(_local_kind(path), str(path))
    if "code" in job.channels:
        return Source("directory", str(job.channels["code"].path))
    return Source("place", str(job.layout.code_dir))


def _local_kind(path: Path) -> Literal["archive", "directory"]:
    return "archive" if path.suffix in {".gz", ".tgz", ".tar", ".bz2", ".xz"} else "directory"


def resolve(choice: Choice, directory: Path) -> Program:
    """Find the program in its fetched code and say how it is started.

    Raises:
        ProgramError: It is not there, lies outside the code, or cannot be executed.
    """
    path = _inside(choice.name, directory)
    name = str(path.relative_to(directory))
    if name.endswith(".py"):
        return _python_program(name, directory, bundled=choice.bundled)
    return Program(
        name=choice.name,
        command=_executable(path, name),
        directory=directory,
        install=() if choice.bundled else find_requirements(name, directory),
    )


def _inside(name: str, directory: Path) -> Path:
    try:
        root = directory.resolve()
        path = (root / name).resolve()
        is_there = path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long for Linux, or links that lead in a circle
        reason = error.strerror if isinstance(error, OSError) else "a link leads in a circle"
        raise ProgramError(
            f"the program {short(name)} cannot be looked up in {directory}: {reason}",
            hint="sagemaker_program is the path of a file inside the source, as in 'train.py'",
        ) from error
    if not path.is_relative_to(root) or path == root:
        raise ProgramError(
            f"the program {short(name)} lies outside its code in {directory}", hint="name it as 'train.py'"
        )
    if not is_there:
        names = _names(directory)
        raise ProgramError(
            f"there is no program {short(name)} in {directory}{_did_you_mean(name, names)}",
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
    if bundled:
        return Program(name=name, command=(sys.executable, name), directory=directory)
    install = find_requirements(name, directory)
    if "." in install:
        module = name.removesuffix(".py").replace("/", ".")
        return Program(name=name, command=(sys.executable, "-m", module), directory=directory, install=install)
    # A name that begins with a dash must not be read as an option.
    script = f"./{name}" if name.startswith("-") else name
    return Program(name=name, command=(sys.executable, script), directory=directory, install=install)


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
    """What pip installs before a program of the user's runs: the code itself where it is a package, what it lists."""
    is_module = name.endswith(".py") and _is_package(directory) and _MODULE_NAME.fullmatch(name)
    listed = ("-r", "requirements.txt") if (directory / "requirements.txt").is_file() else ()
    return (".", *listed) if is_module else listed


def _executable(path: Path, name: str) -> tuple[str, ...]:
    """Any other file: executed itself if it can be, by a shell if it is a script that does not say by whom."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith((b"#!", b"\x7fELF")):
        _require_interpreter(path, name)
        if not os.access(path, os.X_OK):
            _make_executable(path)
        return (f"./{name}",)
    if name.endswith(".sh"):
        return ("/bin/sh", f"./{name}")
    raise ProgramError(
        f"the program {name!r} cannot be executed: it is no Python or shell script, no ELF file, and has no '#!' line",
        hint="begin it with the interpreter, as in '#!/usr/bin/env Rscript'",
    )


def _require_interpreter(path: Path, name: str) -> None:
    """Say what the kernel does not: of a script whose interpreter is missing it says that the script is."""
    with path.open("rb") as file:
        first = file.readline(_LONGEST_FIRST_LINE)
    words = first.removeprefix(b"#!").rstrip(b"\n").split(maxsplit=1) if first.startswith(b"#!") else []
    if first.startswith(b"#!") and first.endswith(b"\r\n"):
        raise ProgramError(
            f"the program {name!r} cannot be executed: its first line ends as Windows ends lines",
            hint=f"sed -i 's/\\r$//' {name}, or `git config core.autocrlf input`",
        )
    if words and not Path(os.fsdecode(words[0])).exists():
        raise ProgramError(
            f"the program {name!r} cannot be executed: its first line asks for {os.fsdecode(words[0])!r},"
            " which is not there",
            hint="install it in the image, or name another interpreter, as in '#!/usr/bin/env bash'",
        )


def _make_executable(path: Path) -> None:
    """Archives made on other systems lose the permission; sagemaker-training sets it too."""
    try:
        path.chmod(path.stat().st_mode | 0o555)
    except OSError as error:
        raise ProgramError(
            f"the program {path} is not executable and cannot be made so: {error.strerror}",
            hint=f"chmod +x {path.name}",
        ) from error
