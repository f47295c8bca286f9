"""What people type and import: the public names, and every help text."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import trainbox
from tests.frozen.recorded import as_json
from trainbox.cli import VERBS
from trainbox.supervisor.program.choice import bundled_scripts

COLUMNS = "100"
#: argparse writes its help a little differently from one Python to the next.
PYTHON = ".".join(map(str, sys.version_info[:2]))


def public_names() -> str:
    """`trainbox.__all__`, as JSON."""
    return as_json(list(trainbox.__all__))


def commands() -> Mapping[str, tuple[str, ...]]:
    """What shows a help text, by the name of the file that it is recorded in."""
    verbs = {f"trainbox-{verb}.txt": ("-m", "trainbox", verb) for verb in VERBS}
    scripts = {f"{path.name}.txt": (str(path),) for path in bundled_scripts().values()}
    return {"train.txt": ("-m", "trainbox.supervisor"), "trainbox.txt": ("-m", "trainbox"), **verbs, **scripts}


def help_of(command: tuple[str, ...], directory: Path) -> str:
    """What a command prints for `--help`."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "LD_LIBRARY_PATH"}}
    answer = subprocess.run(
        [sys.executable, *command, "--help"],
        env={**kept, "COLUMNS": COLUMNS, "NO_COLOR": "1", "PYTHONUTF8": "1"},
        cwd=directory,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        timeout=300,
    )
    return answer.stdout
