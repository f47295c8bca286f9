"""Print what pip installs into the image before the package itself: `requirements.py EXTRA,EXTRA cpu|gpu`.

The package's own dependencies and those of the extras, from pyproject.toml alone, so that the heavy layer of the image
stays the same while the code changes.
"""

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_SELF = re.compile(r"trainbox\[([a-z0-9,]+)\]")


def expand(names: Sequence[str], extras: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The requirements of some extras, those that only name others replaced by them."""
    for name in names:
        if name not in extras:
            raise SystemExit(f"there is no extra {name!r}; there are: {', '.join(extras)}")
        for requirement in extras[name]:
            named = _SELF.fullmatch(requirement)
            if named:
                yield from expand(named[1].split(","), extras)
            else:
                yield requirement


def for_variant(requirement: str, variant: str) -> str:
    """The same requirement for a GPU image: XGBoost's build with CUDA in place of the one without."""
    if variant == "gpu" and requirement.startswith("xgboost-cpu"):
        return "xgboost" + requirement.removeprefix("xgboost-cpu").partition(";")[0]
    return requirement


def main() -> None:
    """Print one requirement a line, each once."""
    names, variant = [name for name in sys.argv[1].split(",") if name], sys.argv[2]
    if variant not in {"cpu", "gpu"}:
        raise SystemExit(f"VARIANT: found {variant!r}, expected cpu or gpu")
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *expand(names, project["optional-dependencies"])]
    print("\n".join(dict.fromkeys(for_variant(requirement, variant) for requirement in wanted)))


if __name__ == "__main__":
    main()
