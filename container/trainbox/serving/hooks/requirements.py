"""The packages that the user's module asks for: installed before it is imported, or the server does not start."""

import subprocess
import sys
from pathlib import Path

import msgspec

from trainbox.errors import RequirementsError
from trainbox.log_lines import emit

_FILE = "requirements.txt"
#: Pip, which sees the packages of one more directory.
_PIP_WITH = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('pip', run_name='__main__')"


def install_requirements(directory: Path) -> None:
    """Install what `requirements.txt` beside the user's module names; what is there already is left alone.

    Raises:
        RequirementsError: Pip cannot.
    """
    file = directory / _FILE
    if not file.is_file():
        return
    emit(f"installing what {file} names")
    # -P: pip must not take a user's `queue.py` for the standard library's. Its output is that of the loader.
    command = [sys.executable, "-P", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*command, "--requirement", str(file)], cwd=directory, stdout=2, check=False)
    if done.returncode:
        raise RequirementsError(
            f"pip could not install what {file} names (exit code {done.returncode})",
            hint="its reason stands above; without a network put the packages into the image, or into code/lib",
        )


def check_requirements(directory: Path) -> None:
    """Check, without installing anything, that what `requirements.txt` beside the user's module names is there.

    The models of a multi-model endpoint share one set of packages: what one of them asks for could be another's end.

    Raises:
        RequirementsError: Something is not there, or the file cannot be read.
    """
    file = directory / _FILE
    if not file.is_file():
        return
    command = [sys.executable, "-P", "-c", _PIP_WITH, str(directory / "lib"), "install", "--dry-run", "--no-index"]
    report = ["--disable-pip-version-check", "--no-input", "--quiet", "--report", "-", "--requirement", str(file)]
    found = subprocess.run([*command, *report], cwd=directory, capture_output=True, text=True, check=False)
    missing = _missing(found.stdout) if not found.returncode else [found.stderr.strip()]
    if missing:
        raise RequirementsError(
            f"{file} names what is not there: {', '.join(missing)}",
            hint="the models of a multi-model endpoint share their packages, and none are installed for one of them:"
            " put these into the image, or into code/lib of the model",
        )


def _missing(report: str) -> list[str]:
    """Return what pip would install."""
    found = msgspec.json.decode(report, type=_Report)
    return [f"{one.metadata.name} {one.metadata.version}" for one in found.install]


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    version: str


class _Install(msgspec.Struct, frozen=True):
    metadata: _Metadata


class _Report(msgspec.Struct, frozen=True):
    """Of pip: https://pip.pypa.io/en/stable/reference/installation-report/."""

    install: tuple[_Install, ...]
