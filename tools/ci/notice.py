"""Whose software an image holds, under which licences: `python -m tools.ci.notice INVENTORY >THIRD_PARTY.md`."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.ci.audit import OURS, normalise
from tools.ci.licences import licence_of

HEAD = """\
# Third-party software in the image

trainbox itself is under the Apache License 2.0 ([LICENSE](LICENSE)). The image `trainbox:cpu` with all its extras also
holds the packages below, under their own licences, whose texts lie in the image: those of Python's packages in
`/opt/venv/lib/python3*/site-packages/*.dist-info`, those of Debian's in `/usr/share/doc/*/copyright`. The images
for GPUs and for aarch64 have `xgboost` (Apache-2.0) in place of `xgboost-cpu`, with libraries of NVIDIA (`nvidia-*`,
`cuda-*`) under NVIDIA's own terms; those for GPUs also `triton` (MIT). Versions, hashes and Debian's packages are in
the SBOM of each release ([Build and push](docs/build-and-push.md#what-is-attached-to-an-image)).

Made by `python -m tools.ci.notice`, from what the packages say of themselves: no lawyer has looked at it.

| package | licence |
|---|---|
"""
CARRIED = """
What wheels say they contain:

| package | carries |
|---|---|
"""


def table(distributions: list[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each package and its licence."""
    for each in distributions:
        found = licence_of(each)
        yield f"| {normalise(each['name'])} | {found[0] if found else 'says none'} |\n"


def carried(distributions: list[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each package that brings bills of materials of its own."""
    for each in distributions:
        bills = [json.loads(text) for _, text in sorted(each["sboms"].items())]
        names = {part["name"] for bill in bills for part in bill.get("components", ()) if part.get("name")}
        own = normalise(each["name"])
        if inside := sorted(name for name in names if normalise(name) != own):
            yield f"| {own} | {', '.join(inside)} |\n"


def main() -> None:
    """Print the page."""
    inventory = json.loads(Path(sys.argv[1]).read_text())
    every = {normalise(each["name"]): each for each in inventory["distributions"]}
    others = [each for name, each in sorted(every.items()) if name not in OURS]
    sys.stdout.write(HEAD + "".join(table(others)) + CARRIED + "".join(carried(others)))


if __name__ == "__main__":
    main()
