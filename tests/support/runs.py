"""`trainbox run` as tests start it, and what it leaves."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "trainbox", "run"]


def record(out: Path) -> dict[str, Any]:
    """What a result says of its job."""
    found: dict[str, Any] = json.loads((out / "job.json").read_text())
    return found


def in_log(out: Path, text: str, host: str = "algo-1") -> Callable[[], bool]:
    """Whether a host has written something, each time it is asked."""
    log = out / "logs" / f"{host}.log"
    return lambda: log.exists() and text in log.read_text()
