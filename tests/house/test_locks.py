"""Locks: whole, by hash, in agreement with each other, and the only way in which anything is installed."""

import re
import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools import lock
from tools.image import requirements

ROOT = Path(__file__).parents[2]
LOCKS = {path.stem: path.read_text() for path in sorted((ROOT / "locks").glob("*.txt"))}
IMAGES = {name: text for name, text in LOCKS.items() if name.startswith("image-")}
PYPROJECT = (ROOT / "pyproject.toml").read_text()
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}\b")
SHELL = [
    path for path in chain(ROOT.glob("tools/**/*"), ROOT.glob(".ci/*")) if path.is_file() and path.suffix != ".pyc"
]


def versions(text: str) -> dict[str, set[str]]:
    """The versions of each package, without the label of a build."""
    return {
        name: {re.split(r"==|[ ;\\+]", entry.partition("\n")[0])[1] for entry in entries}
        for name, entries in requirements.read_entries(text).items()
    }


def test_there_is_a_lock_for_each_variant_and_python_for_development_and_for_what_it_compares_with() -> None:
    images = {f"image-cpu-py{python}-{machine}" for python in (311, 312) for machine in ("x86_64", "aarch64")}
    images |= {f"image-gpu-py{python}-x86_64" for python in (311, 312)}
    assert set(LOCKS) == images | {
        *("bench-serving", "dev", "docs", "hosting-1.7", "hosting-3.0", "incumbent", "release", "sdk-v2", "sdk-v3")
    }


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_is_one_version_with_hashes_and_names_no_index(name: str) -> None:
    text = LOCKS[name]
    assert not re.search(r"^-|://", text, re.MULTILINE), "an index, an option, or a file by its address"
    for entry in chain.from_iterable(requirements.read_entries(text).values()):
        assert re.match(r"[a-z0-9.-]+==[^ *]+( ; .*)? \\\n    --hash=sha256:[0-9a-f]{64}\b", entry), entry


@pytest.mark.parametrize("name", IMAGES)
def test_a_lock_of_an_image_is_the_closure_of_all_that_an_image_may_hold_and_no_more(name: str) -> None:
    wanted = requirements.requirements_of("trainbox[all,toolkit]", PYPROJECT)
    whole = requirements.choose(LOCKS[name], [*wanted, "pip", "hatchling", "setuptools"])
    assert set(whole) == set(requirements.read_entries(LOCKS[name]))
    torch = requirements.choose(LOCKS[name], ["torch"])
    assert {"fsspec", "mpmath", "networkx", "setuptools", "sympy"} <= set(torch)
    assert list(requirements.choose(LOCKS[name], requirements.requirements_of("trainbox[]", PYPROJECT))) == ["msgspec"]
    cuda = {each for each in whole if each.startswith(("nvidia-c", "cuda-", "triton"))}
    assert bool(cuda) == ("gpu" in name)


@pytest.mark.parametrize("name", LOCKS)
def test_only_pytorch_without_cuda_is_a_build_with_a_label(name: str) -> None:
    """`from-lock` gets these from PyTorch's index, and nothing else."""
    labelled = set(re.findall(r"^([a-z0-9.-]+)==[^ ;]*\+(\w+)", LOCKS[name], re.MULTILINE))
    assert labelled == ({("torch", "cpu")} if name == "dev" or "cpu" in name else set())


@pytest.mark.parametrize("name", IMAGES)
def test_what_an_image_holds_is_what_is_tested(name: str) -> None:
    """Of XGBoost and NetworkX development has two versions, as the newer ones need Python 3.12."""
    tested, held = versions(LOCKS["dev"]), versions(LOCKS[name])
    shared = set(held) & set(tested)
    differ = {each for each in shared if not held[each] <= tested[each]}
    assert differ == ({"nvidia-nccl-cu13"} & shared if "gpu" in name else set())
    assert {each for each in shared if len(tested[each]) > 1} <= {"networkx", "xgboost", "xgboost-cpu"}


def test_development_installs_the_whole_of_its_lock_and_has_it() -> None:
    wanted = requirements.requirements_of("trainbox[xgboost,sklearn,torch,serving,s3,local,tuning,demo,dev]", PYPROJECT)
    whole = requirements.choose(LOCKS["dev"], [*wanted, "pip", "hatchling", "editables", "uv"])
    assert set(whole) == set(requirements.read_entries(LOCKS["dev"]))
    for name, texts in requirements.choose(LOCKS["dev"], wanted).items():
        heads = (text.partition("\n")[0].rstrip(" \\") for text in texts)
        locked = [head for head in map(Requirement, heads) if head.marker is None or head.marker.evaluate()]
        for head in locked:
            assert version(name) in head.specifier, f"{name} is not what locks/dev.txt says: make venv"


@pytest.mark.parametrize("name", ["dev", *IMAGES])
def test_a_lock_satisfies_what_pyproject_asks_for(name: str) -> None:
    extras = "all,demo,dev" if name == "dev" else "all,toolkit"
    locked = versions(LOCKS[name])
    for text in requirements.requirements_of(f"trainbox[{extras}]", PYPROJECT):
        wanted = Requirement(text)
        found = locked.get(requirements.normalize(wanted.name), set())
        assert found or wanted.marker, text
        assert all(each in wanted.specifier for each in found), text


def test_an_unknown_extra_and_a_package_that_is_not_locked_are_errors() -> None:
    with pytest.raises(SystemExit, match="there is no extra 'xgbost'; there are: xgboost"):
        requirements.requirements_of("trainbox[xgbost]", PYPROJECT)
    with pytest.raises(SystemExit, match="the lock has no left-pad: run `make lock`"):
        requirements.choose(LOCKS["dev"], ["left-pad>=1"])


def test_a_closure_follows_what_each_entry_is_needed_by() -> None:
    text = "a==1 \\\n    --hash=sha256:0\n    # via\n    #   B.b\n    #   project (pyproject.toml)\n"
    text += "b-b==2 ; python_version < '3.12' \\\n    --hash=sha256:1\n    # via c[extra]\n"
    text += "c==3 \\\n    --hash=sha256:2\n"
    assert list(requirements.choose(text, ["C>=1"])) == ["a", "b-b", "c"]
    assert list(requirements.choose(text, ["a", "absent; python_version < '3'"])) == ["a"]


def test_nothing_is_installed_that_has_no_hash() -> None:
    """Every call of pip asks for hashes, or has files that were checked, and no second index."""
    files = [*SHELL, ROOT / "Makefile", ROOT / "Dockerfile", ROOT / "buildspec.yml"]
    call = re.compile(r"(\bpip|PIP_INSTALL\S*)\"? (.* )?(install|download|wheel|\"\$verb\") ")
    calls = [
        (path.name, line)
        for path in files
        if path.suffix != ".py"
        for line in path.read_text().replace("\\\n", " ").splitlines()
        if call.search(line) and not line.lstrip().startswith("#") and "##" not in line
    ]
    assert any(name == "from-lock" for name, _ in calls)
    for name, line in calls:
        assert "--require-hashes" in line or "--no-index" in line, (name, line)
    assert not [path.name for path in files if "extra-index-url" in path.read_text()]


def test_base_images_are_named_by_digest_and_are_the_same_one() -> None:
    (ours,) = re.findall(r"^ARG BASE_IMAGE=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(DIGEST.findall(ours)) == 1
    for name in ("buildspec.yml", "tools/ci/buildspec-test.yml"):
        (built,) = re.findall(r"^ +BASE_IMAGE: (.*)$", (ROOT / name).read_text(), re.MULTILINE)
        assert built.endswith(f"/{ours}"), name
    froms = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {each for each in froms if each != "dependencies"} == {"${BASE_IMAGE}"}


def test_a_lock_is_resolved_with_pytorch_from_its_own_index_and_all_else_from_pypi() -> None:
    found = {each.name: each for each in lock.all_locks()}
    assert set(found) == set(LOCKS)
    for name, each in found.items():
        project = tomllib.loads(lock.project_of(each, PYPROJECT, "https://pytorch.example/cpu"))
        uv = project["tool"]["uv"]
        assert [index["name"] for index in uv["index"] if not index.get("explicit")] == ["pypi"]
        assert set(uv.get("sources", ())) == ({"torch"} if each.variant == "cpu" else set())
        assert not any("trainbox" in requirement for requirement in project["project"]["dependencies"])
        assert LOCKS[name].startswith(lock.header(each)), f"make lock LOCKS={name}"
    gpu = tomllib.loads(lock.project_of(found["image-gpu-py312-x86_64"], PYPROJECT, lock.TORCH_CPU))
    assert not any(each.startswith("xgboost-cpu") for each in gpu["project"]["dependencies"])


def test_other_locks_take_the_versions_of_development_whatever_the_build() -> None:
    text = "torch==2.13.0+cpu ; sys_platform == 'linux' \\\n    --hash=sha256:0\n    # via b\n"
    text += "nvidia-nccl-cu13==1 \\\n    --hash=x\n"
    assert lock.constraints_from(text, lock.CUDA) == "torch==2.13.0 ; sys_platform == 'linux'\n"
    assert lock.constraints_from(text, "").splitlines()[1] == "nvidia-nccl-cu13==1"


def test_a_lock_names_nothing_of_the_machine_that_made_it() -> None:
    made = "a==1 \\\n    --hash=x\n    # via\n    #   -c /tmp/x/constraints.txt\n    #   b\n    # via -c /tmp/x\n"
    assert lock.tidy(made) == "a==1 \\\n    --hash=x\n    # via\n    #   b\n"
    for name, text in LOCKS.items():
        assert not re.search(r"/tmp|-c |127\.0\.0\.1|file:", text), name
