"""The packages that the user's module asks for: installed before it is imported, or the server does not start."""

import subprocess
import sys
from pathlib import Path

from trainbox.errors import RequirementsError
from trainbox.log_lines import emit

_FILE = "requirements.txt"


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
