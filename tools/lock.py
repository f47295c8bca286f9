"""Resolve the locks of `locks/`: `make lock`; `make lock UPGRADE=name,name` (or `UPGRADE=all`) takes newer versions.

Every lock is the whole closure, pip included, with the hashes of every file that its indexes have. `dev.txt` comes
first; the others take its versions where they can, so that what is tested is what the image holds. PyTorch's builds
without CUDA come from its own index alone, and nothing else does: an index must not be able to offer what is another's
(https://docs.astral.sh/uv/concepts/indexes/#pinning-a-package-to-an-index).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.image import requirements

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "locks"
#: The indexes, by what they are for.
PYPI = "https://pypi.org/simple"
TORCH_CPU = "https://download.pytorch.org/whl/cpu"
#: What installs the rest, and what builds this package.
TOOLS = ("pip", "hatchling", "editables")
#: What an image may hold, in all.
IMAGE = "trainbox[all,toolkit]"
#: What an image is locked for: variant, Python and machine.
IMAGES = (
    *(("cpu", python, machine) for python in ("3.11", "3.12") for machine in ("x86_64", "aarch64")),
    *(("gpu", python, "x86_64") for python in ("3.11", "3.12")),
)
#: What an image for GPUs has in other versions than development: PyTorch's build decides.
CUDA = r"nvidia-nccl-.*"

#: What SageMaker's built-in XGBoost imports, most in the versions that it names (image 3.0-5); and what else answers.
SERVING = (
    *("xgboost-cpu==3.0.5", "flask==3.1.3", "gunicorn==25.3.0", "gevent==26.4.0", "numpy==2.1.0", "pandas==2.2.3"),
    *("scikit-learn==1.8.0", "scipy==1.15.0", "pyarrow==22.0.0", "boto3==1.38.0", "psutil==7.0.0", "retrying"),
    *("multi-model-server==1.1.2", "sagemaker-inference==1.10.1", "paramiko", "packaging", "setuptools<81"),
    *("litserve", "uvicorn", "uvloop", "httptools"),
)


class Lock(NamedTuple):
    """One file of `locks/`."""

    name: str
    packages: tuple[str, ...]
    #: The version of Python: the lowest, but of an image the only one.
    python: str = "3.11"
    #: What an image runs on; empty for every platform.
    machine: str = ""
    #: "cpu" or "gpu": which build of PyTorch and of XGBoost.
    variant: str = "cpu"
    #: Whether it takes the versions of `dev.txt`.
    follows: bool = True


def all_locks() -> Iterator[Lock]:
    """Yield every lock, `dev.txt` first."""
    extras = "xgboost,sklearn,torch,serving,s3,local,tuning,demo,dev"
    yield Lock("dev", (f"trainbox[{extras}]", *TOOLS, "uv"), follows=False)
    for variant, python, machine in IMAGES:
        name = f"image-{variant}-py{python.replace('.', '')}-{machine}"
        yield Lock(name, (IMAGE, *TOOLS[:2], "setuptools"), python, machine, variant)
    yield Lock("incumbent", ("sagemaker-training==5.1.4", "setuptools"))
    # What SageMaker's built-in XGBoost hosts models with, in its images 3.0-5 and 1.7-1.
    yield Lock("hosting-3.0", ("xgboost-cpu==3.0.5",), follows=False)
    yield Lock("hosting-1.7", ("xgboost==1.7.6", "numpy<2"), follows=False)
    yield Lock("sdk-v2", ("sagemaker==2.257.7",), follows=False)
    # What `make bench-serving` measures beside `serve`.
    yield Lock("bench-serving", SERVING, follows=False)
    yield Lock("release", ("boto3", "docker", "pip", "pip-audit", "requests"), "3.11")
    yield Lock("sdk-v3", ("sagemaker-train==1.27.0", "sagemaker-serve==1.27.0"), follows=False)
    # What makes the site of docs/.
    yield Lock("docs", ("sphinx", "myst-parser", "furo"), follows=False)


def for_variant(requirement: str, variant: str) -> str:
    """Return the same requirement for GPUs: XGBoost's build with CUDA in place of the one without."""
    if variant == "gpu" and requirement.startswith("xgboost-cpu"):
        return "xgboost" + requirement.removeprefix("xgboost-cpu").partition(";")[0]
    return requirement


def project_of(lock: Lock, pyproject: str, torch_index: str) -> str:
    """Return the pyproject.toml that uv resolves: the requirements of a lock and where each may come from."""
    wanted = [each for package in lock.packages for each in requirements.requirements_of(package, pyproject)]
    wanted = list(dict.fromkeys(for_variant(each, lock.variant) for each in wanted))
    lines = [
        "[project]",
        'name = "locked"',
        'version = "0"',
        f'requires-python = ">={lock.python}"',
        f"dependencies = {json.dumps(wanted)}",
        "[tool.uv]",
        f'index = [{{name = "pypi", url = "{PYPI}", default = true}},',
        f'  {{name = "torch-cpu", url = "{torch_index}", explicit = true}}]',
    ]
    if lock.variant == "cpu":
        lines += ["[tool.uv.sources]", 'torch = {index = "torch-cpu", marker = "sys_platform == \'linux\'"}']
    return "\n".join(lines) + "\n"


def constraints_from(lock: str, skip: str) -> str:
    """Return the versions of a lock as constraints, without the label of a build (`+cpu`), but for some packages."""
    lines = [
        re.sub(r"\+[a-z0-9.]+", "", text.partition("\n")[0]).rstrip(" \\")
        for name, texts in requirements.read_entries(lock).items()
        if not re.fullmatch(skip, name)
        for text in texts
    ]
    return "\n".join(lines) + "\n"


def compile_lock(lock: Lock, uv: str, torch_index: str, upgrade: Sequence[str]) -> None:
    """Write one lock anew; versions that it has already are kept where they still fit."""
    path = LOCKS / f"{lock.name}.txt"
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch, "pyproject.toml")
        project.write_text(project_of(lock, (ROOT / "pyproject.toml").read_text(), torch_index))
        command = [uv, "pip", "compile", "--generate-hashes", "--quiet", "--no-header"]
        command += [f"--python-platform={lock.machine}-manylinux_2_28"] if lock.machine else ["--universal"]
        command += ["--python-version", lock.python, "--output-file", str(path)]
        if lock.follows:
            constraints = Path(scratch, "constraints.txt")
            constraints.write_text(
                constraints_from((LOCKS / "dev.txt").read_text(), CUDA if lock.variant == "gpu" else "")
            )
            command += ["--constraint", str(constraints)]
        command += ["--upgrade"] if "all" in upgrade else [f"--upgrade-package={each}" for each in upgrade]
        # Neither the settings of this machine's uv nor the paths of this scratch directory belong into a lock.
        subprocess.run([*command, "pyproject.toml"], cwd=scratch, check=True, env=_clean_environment())
    path.write_text(header(lock) + tidy(path.read_text()))


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("UV_INDEX", "UV_FIND", "PIP_"))}


def header(lock: Lock) -> str:
    """Return what the first lines of a lock say."""
    where = f"{lock.python} on {lock.machine}" if lock.machine else f"{lock.python} or newer"
    return f"# Made by `make lock`: {', '.join(lock.packages)}; Python {where}. Every file has one of these hashes.\n"


def tidy(text: str) -> str:
    """Return uv's output without what names the scratch project and constraints."""
    lines = [line for line in text.splitlines() if not re.search(r"# *(via +)?-c ", line)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the locks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="locks to write; all by default")
    parser.add_argument("--uv", default="uv", help="the program")
    parser.add_argument("--torch-index", default=TORCH_CPU, help="PyTorch's index of builds without CUDA, or a mirror")
    parser.add_argument("--upgrade", default="", help="packages that take newer versions, with commas between; or all")
    given = parser.parse_args()
    upgrade = [name for name in given.upgrade.split(",") if name]
    LOCKS.mkdir(exist_ok=True)
    for lock in all_locks():
        if not given.names or lock.name in given.names:
            print(f"lock: {lock.name}", file=sys.stderr)
            compile_lock(lock, given.uv, given.torch_index, upgrade)


if __name__ == "__main__":
    main()
