"""The examples of documentation pages, to be run or checked."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Every page that a reader may land on.
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md")))


def find_blocks(page: Path, kind: str) -> list[str]:
    """The code blocks of a kind (`python`, `console`, `json`), in order."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def find_commands(page: Path) -> list[str]:
    """The lines behind `$ ` of the console blocks, in order."""
    lines = (line for block in find_blocks(page, "console") for line in block.splitlines())
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def example(page: str, containing: str) -> str:
    """The one Python example of a page that contains a text."""
    (found,) = [block for block in find_blocks(DOCS / page, "python") if containing in block]
    return found


def run_line(line: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line in a shell, with the programs of this environment first."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", line], cwd=directory, env=env, capture_output=True, text=True, check=False, timeout=300
    )
