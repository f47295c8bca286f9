"""Say what an image weighs, layer by layer, and whether that is too much: `sizes.py IMAGE …`; exit code 1 if it is.

What lies above the base image counts, as that may be any: the budgets are for a base of 290 MB. An image for GPUs has
none: CUDA's own libraries are several GB.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

BASE_MB = 290
#: The most that an image may weigh in all, by the heaviest framework in it.
BUDGETS_MB = {"torch": 1700, "xgboost": 750, "sklearn": 750, "toolkit": 750}
CORE_BUDGET_MB = 340
#: What the extra `serving` may add to an image.
SERVING_BUDGET_MB = 25
#: Runs in the image: the packages that an extra of trainbox brings and nothing else there asks for, with their bytes.
_EXTRA = """
import importlib.metadata, json, re, sys
def asked(name, extras):
    for text in importlib.metadata.requires(name) or ():
        marker = text.partition(";")[2]
        extra = re.search(r"extra *== *['\\"]([^'\\"]+)", marker)
        if extra is None or extra[1] in extras:
            yield re.match(r"[A-Za-z0-9._-]+", text)[0].lower().replace("_", "-").replace(".", "-")
def closure(extras):
    found, rest = set(), list(asked("trainbox", extras))
    while rest:
        name = rest.pop()
        if name not in found:
            try:
                rest += asked(name, ())
            except importlib.metadata.PackageNotFoundError:
                continue
            found.add(name)
    return found
extra, *others = sys.argv[1:]
sizes = {}
for name in sorted(closure([extra]) - closure(others)):
    files = importlib.metadata.files(name) or ()
    sizes[name] = sum(path.locate().stat().st_size for path in files if path.locate().is_file())
print(json.dumps(sizes))
"""


class Layer(NamedTuple):
    """What one step of the Dockerfile added, or one package."""

    name: str
    megabytes: float


def _ask(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


def read_layers(image: str) -> Iterator[Layer]:
    """Those that this Dockerfile makes: each copies what lies below /layer in another stage."""
    history = _ask("history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", image)
    for line in history.splitlines():
        size, _, command = line.partition("\t")
        _, found, path = command.partition("COPY /layer/")
        if found:
            yield Layer(path.split()[0], int(size) / 1e6)


def read_extra(image: str, extra: str) -> list[Layer]:
    """Return the packages that an image has for one extra alone."""
    (about,) = json.loads(_ask("image", "inspect", image))
    others = [each for each in about["Config"]["Labels"]["trainbox.extras"].split(",") if each not in {"", extra}]
    told = _ask("run", "--rm", "--network", "none", image, "python", "-c", _EXTRA, extra, *others)
    return [Layer(name, size / 1e6) for name, size in json.loads(told).items()]


def main() -> int:
    """Print a table for each image."""
    too_heavy = False
    for image in sys.argv[1:]:
        (about,) = json.loads(_ask("image", "inspect", image))
        labels, total = about["Config"]["Labels"], about["Size"] / 1e6
        extras = [name for name in labels["trainbox.extras"].split(",") if name]
        layers = list(read_layers(image))
        own = sum(layer.megabytes for layer in layers)
        print(f"{image} ({labels['trainbox.variant']}: {', '.join(extras) or 'the core alone'})")
        for layer in (*layers, Layer("the base image", total - own), Layer("in all", total)):
            print(f"  {layer.name:16}{layer.megabytes:9.2f} MB")
        if "serving" in extras:
            serving = sum(package.megabytes for package in read_extra(image, "serving"))
            too_heavy = too_heavy or serving > SERVING_BUDGET_MB
            print(f"  of it for serving alone {serving:.2f} MB, budget {SERVING_BUDGET_MB} MB")
        if labels["trainbox.variant"] == "gpu":
            continue
        budget = max((BUDGETS_MB.get(name, CORE_BUDGET_MB) for name in extras), default=CORE_BUDGET_MB)
        counted = own + BASE_MB
        too_heavy = too_heavy or counted > budget
        verdict = "kept" if counted <= budget else "NOT kept"
        print(f"  on a base of {BASE_MB} MB {counted:.0f} MB, budget {budget} MB: {verdict}")
    return 1 if too_heavy else 0


if __name__ == "__main__":
    sys.exit(main())
