"""The packages that the user's module asks for: installed before it is imported, or the server does not start."""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import msgspec

from trainbox.contract.setting_values import PIP_RULES, Installs
from trainbox.errors import RequirementsError
from trainbox.log_lines import emit

_FILE = "requirements.txt"
#: Pip, which sees the packages of one more directory.
_PIP_WITH = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('pip', run_name='__main__')"


def install_requirements(directory: Path, installs: Installs) -> None:
    """Install what `requirements.txt` beside the user's module names; what is there already is left alone.

    Where the image cannot be written it goes into a temporary directory, which is searched first from now on.

    Args:
        directory: Of the module.
        installs: What pip may install.

    Raises:
        RequirementsError: Pip cannot.
    """
    file = directory / _FILE
    if not file.is_file():
        return
    if installs == "off":
        emit(f"TRAINBOX_REQUIREMENTS=off: {file} is not installed")
        return
    # -P: pip must not take a user's `queue.py` for the standard library's. Its output is that of the loader.
    command = [sys.executable, "-P", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    site = sysconfig.get_path("purelib")
    where = ""
    if not os.access(site, os.W_OK):
        place = _make_place(file)
        command += ["--prefix", place]
        where = f" into {place}: {site} cannot be written"
        sys.path.insert(0, sysconfig.get_path("purelib", vars={"base": place}))
    emit(f"installing what {file} names{where}")
    command += [*PIP_RULES[installs], "--requirement", str(file)]
    done = subprocess.run(command, cwd=directory, stdout=2, check=False)
    if done.returncode:
        raise RequirementsError(
            f"pip could not install what {file} names (exit code {done.returncode})",
            hint="its reason stands above; without a network put the packages into the image, or into code/lib",
        )


def _make_place(file: Path) -> str:
    try:
        return tempfile.mkdtemp(prefix="trainbox-")
    except OSError as error:
        raise RequirementsError(
            f"there is no place for what {file} names: {error.strerror}",
            hint="mount a temporary file system at /tmp, or put the packages into the image, or into code/lib",
        ) from error


def check_requirements(directory: Path, installs: Installs) -> None:
    """Check, without installing anything, that what `requirements.txt` beside the user's module names is there.

    The models of a multi-model endpoint share one set of packages: what one of them asks for could be another's end.

    Args:
        directory: Of the module.
        installs: `off` leaves it to the user.

    Raises:
        RequirementsError: Something is not there, or the file cannot be read.
    """
    file = directory / _FILE
    if not file.is_file() or installs == "off":
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
