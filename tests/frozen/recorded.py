"""What trainbox did when it was recorded, and the rule for changing it.

`tests/frozen/recorded/` holds the plans, dry runs, failure files, help texts, digests, models and checkpoints of an
earlier commit. The tests of this directory make the same again and compare.

The rule: a change of bytes, variables or paths is made on purpose. When a comparison fails, either the change was not
meant (mend the code), or it was: then record anew with the command that the failure names, read the diff of the
recorded files, and commit both in a commit of its own, with a line in CHANGELOG.md that says what changed for users.

    make freeze WHAT=plans                 # plans, dry-runs, failures, process-failures, help, names, digests
    make freeze                            # all of these
    make freeze WHAT=fixtures              # only when asked: models and checkpoints that later versions must still read
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

DIRECTORY = Path(__file__).with_name("recorded")
RULE = (
    "A change of bytes, variables or paths is made on purpose, in a commit of its own, with a line in CHANGELOG.md"
    " (tests/frozen/recorded.py). If this change is meant, record it:"
)


def as_json(value: object) -> str:
    """Sorted and indented, one value a line, so that a diff can be read."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read(name: str) -> str | None:
    """The recorded text of a file below `recorded/`; None where there is none."""
    path = DIRECTORY / name
    return path.read_text(encoding="utf-8") if path.exists() else None


def write(name: str, text: str) -> None:
    """Record a text."""
    path = DIRECTORY / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_all(directory: str, texts: Mapping[str, str]) -> None:
    """Record the texts of a directory; those of cases that are no more go."""
    for path in (DIRECTORY / directory).glob("*"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        write(f"{directory}/{name}", text)


def names(directory: str) -> list[str]:
    """The files recorded in a directory."""
    return sorted(path.name for path in (DIRECTORY / directory).iterdir())


def compare(name: str, found: str, *, what: str) -> None:
    """Fail with a unified diff where a text is not the recorded one.

    Args:
        name: Of the recorded file.
        found: What the code makes now.
        what: The word for `make freeze WHAT=…`.
    """
    expected = read(name)
    command = f"make freeze WHAT={what}"
    if expected is None:
        pytest.fail(f"{name} is not recorded. {RULE} {command}", pytrace=False)
    if found != expected:
        place = f"tests/frozen/recorded/{name}"
        diff = difflib.unified_diff(
            expected.splitlines(), found.splitlines(), f"{place} (recorded)", f"{place} (now)", lineterm="", n=2
        )
        pytest.fail(f"{name} differs.\n" + "\n".join(diff) + f"\n{RULE} {command}", pytrace=False)
