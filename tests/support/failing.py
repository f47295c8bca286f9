"""Scripts that fail, and what a real Python says of them."""

import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path


def stderr_of(tmp_path: Path, script: str, *, code: int = 1, prefix: Sequence[str] = (), **modules: str) -> str:
    """What a real Python says on stderr when a script fails."""
    for name, content in {"train": script, **modules}.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(content))
    run = subprocess.run(
        [*prefix, sys.executable, "-X", "faulthandler", "train.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == code, run.stderr
    return run.stderr
