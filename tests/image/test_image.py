"""The image as SageMaker, and as a person, starts it: real containers of `trainbox:cpu`."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import eventually
from tools.image import requirements

pytestmark = pytest.mark.docker

STOP_SCRIPT = """
import time, trainbox
store = trainbox.checkpoints()
found = store.latest()
print("from", found.step if found else 0, flush=True)
step = found.step if found else 0
while not trainbox.stop_requested() and not found:
    step += 1
    time.sleep(0.05)
with store.writing(step) as directory:
    (directory / "state").write_text(str(step))
(trainbox.model_dir() / "model").write_text(str(step))
"""
ORPHAN_SCRIPT = """
import os, subprocess, time
# A grandchild whose parent leaves at once becomes a child of PID 1, which has to reap it.
subprocess.run(["bash", "-c", "(sleep 0.2 &) ; (setsid sleep 300 &)"])
time.sleep(1)
pids = [pid for pid in os.listdir("/proc") if pid.isdigit()]
states = [open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] for pid in pids]
print("zombies", states.count("Z"), flush=True)
"""
TORCH_SCRIPT = """
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

# This way of sharing needs a program of PyTorch's.
torch.multiprocessing.set_sharing_strategy("file_system")
dist.init_process_group("gloo")
net = DistributedDataParallel(torch.nn.Linear(4, 2))
sgd = torch.optim.SGD(net.parameters(), 0.1)
for (x,) in DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4, num_workers=1):
    net(x).square().mean().backward()
    sgd.step()
dcp.save({"model": net.module.state_dict()}, checkpoint_id="/opt/ml/model/saved")
state = {"model": torch.nn.Linear(4, 2).state_dict()}
dcp.load(state, checkpoint_id="/opt/ml/model/saved")
assert torch.equal(state["model"]["weight"], net.module.weight)
if dist.get_rank() == 0:
    torch.export.save(torch.export.export(net.module, (x,)), "/opt/ml/model/net.pt2")
    assert torch.allclose(torch.export.load("/opt/ml/model/net.pt2").module()(x), net.module(x))
    assert torch.compile(net.module, backend="aot_eager")(x).shape == (4, 2)
print("rank", dist.get_rank(), "of", dist.get_world_size(), flush=True)
dist.destroy_process_group()
"""
#: There is no /opt/ml before: the code is what the image itself has.
OWN_SCRIPT = """
mkdir -p /opt/ml/code
cat >/opt/ml/code/own.sh <<'END'
#!/bin/sh
python -c 'import trainbox; trainbox.save("m", b"x")'
END
exec train
"""
ROOT = Path(__file__).parents[2]

TRUST_SCRIPT = """
import hashlib, json, pathlib, re, subprocess
pem = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
listed = subprocess.run(["dpkg", "-L", "ca-certificates"], capture_output=True, text=True, check=True).stdout.split()
packaged = [pathlib.Path(each) for each in listed if re.match("/usr/share/ca-certificates/.*[.]crt$", each)]
sums = dict(line.split()[::-1] for line in open("/var/lib/dpkg/info/ca-certificates.md5sums"))
store = pathlib.Path("/etc/ssl/certs")
trusted = [each for path in store.iterdir() for each in pem.findall(path.read_text())]
known = {each for path in packaged for each in pem.findall(path.read_text())}
print(json.dumps({
    "changed": [str(p) for p in packaged if hashlib.md5(p.read_bytes()).hexdigest() != sums[str(p)[1:]]],
    "unknown": len({each for each in trusted if each not in known}),
    "trusted": len(set(trusted)),
    "local": [str(path) for path in pathlib.Path("/usr/local/share/ca-certificates").rglob("*")],
    "secrets": [str(path) for path in pathlib.Path("/run/secrets").rglob("*")],
}))
"""
INSTALLED_SCRIPT = """
import base64, csv, hashlib, importlib.metadata, json, os
from pathlib import Path
site = Path(importlib.metadata.distribution("msgspec").locate_file(""))
found = {d.metadata["Name"]: d for d in importlib.metadata.distributions(path=[str(site)])}
claimed, changed = set(), []
for name, each in found.items():
    for path, digest, _ in csv.reader((each.read_text("RECORD") or "").splitlines()):
        file = Path(os.path.normpath(site / path))
        claimed.add(file)
        if name != "trainbox" and digest and file.exists():
            kind, _, expected = digest.partition("=")
            actual = base64.urlsafe_b64encode(hashlib.new(kind, file.read_bytes()).digest()).rstrip(b"=").decode()
            if actual != expected:
                changed.append(str(file))
present = {file for file in site.rglob("*") if file.is_file() and file.suffix != ".pyc"}
print(json.dumps({
    "versions": {name: each.version for name, each in found.items()},
    "changed": changed,
    "unclaimed": sorted(str(file) for file in present - claimed),
}))
"""


def docker(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=False, timeout=timeout, stdin=subprocess.DEVNULL
    )


def extras(image: str) -> list[str]:
    label = '{{index .Config.Labels "trainbox.extras"}}'
    return docker("image", "inspect", "--format", label, image).stdout.strip().split(",")


class Tree:
    """A directory to mount at /opt/ml."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("input/config", "input/data", "model", "output", "checkpoints", "code"):
            (root / name).mkdir(parents=True)
        self.write("resourceconfig", {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"})
        self.write("checkpointconfig", {"LocalPath": "/opt/ml/checkpoints"})

    def write(self, name: str, content: Mapping[str, object]) -> None:
        (self.root / f"input/config/{name}.json").write_text(json.dumps(content))

    def script(self, text: str) -> None:
        (self.root / "code" / "train.py").write_text(text)
        self.write("hyperparameters", {"sagemaker_program": "train.py"})

    def bundled(self, name: str, **hyperparameters: str) -> None:
        self.write("hyperparameters", {"trainbox_script": name, **hyperparameters})
        channels = ("train", "validation")
        self.write("inputdataconfig", {channel: {"TrainingInputMode": "File"} for channel in channels})
        for channel in channels:
            directory = self.root / "input/data" / channel
            directory.mkdir()
            with (directory / "part-0.csv").open("w") as file:
                csv.writer(file).writerows([x % 2, x, (x * 7) % 5, x % 2 + x / 100] for x in range(60))

    @property
    def failure(self) -> str:
        return (self.root / "output" / "failure").read_text()

    def run(self, image: str, *options: str, command: Sequence[str] = ("train",)) -> subprocess.CompletedProcess[str]:
        return docker("run", "--rm", "--volume", f"{self.root}:/opt/ml", *options, image, *command)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "ml")


# -- how it is started -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), ("train",)], ids=["nothing", "train"])
def test_it_trains_as_sagemaker_starts_it_and_as_sdk_v3_does_without_source(
    image: str, tree: Tree, command: tuple[str, ...]
) -> None:
    tree.script("import os\nopen('/opt/ml/model/m', 'w').write(str(os.getppid()))")
    answer = tree.run(image, command=command)
    assert answer.returncode == 0, answer.stderr
    assert (tree.root / "model" / "m").read_text() == "1", "the supervisor is PID 1"


def test_other_commands_do_what_a_person_expects(image: str) -> None:
    assert docker("run", "--rm", image, "trainbox", "--version").stdout.startswith("trainbox ")
    assert docker("run", "--rm", image, "bash", "-c", "echo $((6 * 7))").stdout == "42\n"
    names = ["train", "python", "pip", *(["torchrun"] if "torch" in extras(image) else [])]
    tools = docker("run", "--rm", image, "bash", "-c", f"command -v {' '.join(names)} bash")
    assert tools.stdout.split()[:-1] == [f"/opt/venv/bin/{name}" for name in names], tools.stderr


@pytest.mark.representative
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["--version"], 0, r"trainbox \d+\.\d+\.\d+\n"),
        (["--help"], 0, "usage: trainbox .*VERB"),
        (["describe", "xgboost"], 0, "num_round"),
        (["frobnicate"], 127, "trainbox: this image has no program 'frobnicate'\n  hint: .*'bash' is a shell"),
        (["serve"], 7, "FAILED: ClientError: DataError: /opt/ml/model cannot be read"),
        (["my.py"], 127, "--env SAGEMAKER_PROGRAM=my.py"),
        (["--verison"], 2, "--verison"),
        (["train", "fast"], 2, "train takes no arguments, and was given 'fast'"),
        (["sh", "-c", "exit 9"], 9, "^$"),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else None,
)
def test_a_flag_a_verb_and_a_word_that_is_nothing_get_a_sentence(
    image: str, command: list[str], code: int, said: str
) -> None:
    answer = docker("run", "--rm", image, *command)
    assert answer.returncode == code, answer.stdout + answer.stderr
    assert re.search(said, answer.stdout + answer.stderr), answer.stdout + answer.stderr


SAVES = "import trainbox\ntrainbox.save('m', b'here')\nprint(trainbox.current_job().layout.root)\n"


@pytest.mark.parametrize(
    ("options", "command"),
    [
        (["--env", "SAGEMAKER_PROGRAM=train.py"], ["train"]),
        (["--env", "SAGEMAKER_PROGRAM=train.py", "--user", "1234"], []),
        (["--env", "SAGEMAKER_PROGRAM=train.py", "--read-only", "--tmpfs", "/tmp"], ["train"]),
        (["--env", "TRAINBOX_MODULE=train"], ["train"]),
        (["--user", "1234"], ["python", "/opt/ml/code/train.py"]),
        (["--workdir", "/opt/ml/code"], ["python", "-m", "train"]),
    ],
    ids=lambda given: " ".join(given) or "nothing",
)
def test_a_container_that_is_started_by_hand_leaves_its_model_where_that_is_mounted(
    image: str, tmp_path: Path, options: list[str], command: list[str]
) -> None:
    """As `docker run` and the pods of Kubernetes do: with a directory of code, read-only, and one for the model."""
    for name in ("code", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    (tmp_path / "code" / "train.py").write_text(SAVES)
    mounts = ["--volume", f"{tmp_path}/code:/opt/ml/code:ro", "--volume", f"{tmp_path}/model:/opt/ml/model"]
    answer = docker("run", "--rm", "--network", "none", *mounts, *options, image, *command)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "/opt/ml\n"
    assert (tmp_path / "model" / "m").read_bytes() == b"here"


def test_a_container_without_any_mount_keeps_its_model_in_its_tree(image: str) -> None:
    started = docker("run", "--detach", "--env", "SAGEMAKER_PROGRAM=own.sh", image, "sh", "-c", OWN_SCRIPT)
    container = started.stdout.strip()
    try:
        assert docker("wait", container).stdout == "0\n", docker("logs", container).stderr
        assert "opt/ml/model/m" in subprocess.run(
            ["sh", "-c", f"docker cp {container}:/opt/ml/model - | tar -t | sed s,^,opt/ml/,"],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip
    finally:
        docker("rm", "--force", "--volumes", container)


def test_without_a_job_it_says_what_is_missing(image: str) -> None:
    answer = docker("run", "--rm", image)
    assert answer.returncode == 3
    assert "the job names no program to run" in answer.stderr
    assert "xgboost_train" in answer.stderr


def test_modules_on_a_users_path_do_not_take_the_place_of_the_supervisors(image: str) -> None:
    shadow = (
        'mkdir -p /tmp/mine; echo "raise SystemExit(99)" | tee /tmp/mine/signal.py >/tmp/mine/msgspec.py; exec train'
    )
    answer = docker("run", "--rm", "--env", "PYTHONPATH=/tmp/mine", image, "sh", "-c", shadow)
    assert answer.returncode == 3
    assert "the job names no program to run" in answer.stderr


# -- how a job ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hyperparameters", "model"),
    [
        ("xgboost", {"num_round": "3", "objective": "binary:logistic", "eval_metric": "auc"}, "xgboost-model"),
        ("random_forest", {"n-estimators": "10"}, "model.joblib"),
        ("pytorch", {"epochs": "2", "batch-size": "20", "processes_per_host": "2"}, "model.pt2"),
    ],
)
def test_each_bundled_script_leaves_its_model(
    image: str, tree: Tree, name: str, hyperparameters: dict[str, str], model: str
) -> None:
    tree.bundled(name, **hyperparameters)
    answer = tree.run(image, "--network", "none")
    assert answer.returncode == 0, answer.stderr
    assert "[metrics] final " in answer.stdout
    assert (tree.root / "model" / model).stat().st_size > 0


def test_a_failing_script_keeps_its_exit_code_and_says_why(image: str, tree: Tree) -> None:
    tree.script("import sys\ntry:\n    raise ValueError('the real reason')\nfinally:\n    pass")
    assert tree.run(image).returncode == 1
    assert tree.failure.startswith("ValueError: the real reason\nat train.py:3")
    tree.script("import sys; sys.exit(7)")
    assert tree.run(image).returncode == 7


@pytest.mark.representative
def test_docker_stop_saves_a_checkpoint_and_the_next_run_resumes_from_it(image: str, tree: Tree) -> None:
    tree.script(STOP_SCRIPT)
    started = docker("run", "--detach", "--volume", f"{tree.root}:/opt/ml", image, "train")
    container = started.stdout.strip()
    try:
        eventually(lambda: "from 0" in docker("logs", container).stdout, "the script at work")
        docker("stop", "--time", "120", container)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", container).stdout.strip() == "0"
    finally:
        docker("rm", "--force", container)
    again = tree.run(image)
    assert again.returncode == 0, again.stderr
    step = int((tree.root / "model" / "model").read_text())
    assert f"from {step}" in again.stdout
    assert step > 0


def test_pid_1_reaps_orphans_and_leaves_none(image: str, tree: Tree) -> None:
    tree.script(ORPHAN_SCRIPT)
    answer = tree.run(image)
    assert "zombies 0" in answer.stdout
    assert "ended 1 process(es) that the script had left behind" in answer.stderr


def test_running_out_of_memory_is_the_reason(image: str, tree: Tree) -> None:
    tree.script("block = bytearray(1)\nwhile True:\n    block += b'x' * 10_000_000")
    answer = tree.run(image, "--memory", "96m", "--memory-swap", "96m")
    assert answer.returncode == 137, answer.stderr
    assert tree.failure.startswith("out of memory: the kernel killed a process of this job (limit 96 MiB)")


# -- what it may be run as -------------------------------------------------------------------------------------------


def test_any_user_may_run_it(image: str, tree: Tree) -> None:
    tree.bundled("xgboost", num_round="2")
    for path in (tree.root, *tree.root.rglob("*")):
        os.chmod(path, 0o777 if path.is_dir() else 0o666)  # noqa: PTH101 - one line for both kinds
    answer = tree.run(image, "--user", "1234")
    assert answer.returncode == 0, answer.stderr
    assert (tree.root / "model" / "xgboost-model").stat().st_uid == 1234


def test_its_own_files_may_be_read_only(image: str, tree: Tree) -> None:
    tree.bundled("random_forest", **{"n-estimators": "2"})
    answer = tree.run(image, "--read-only", "--tmpfs", "/tmp")
    assert answer.returncode == 0, answer.stderr
    assert (tree.root / "output/data/learning-curves.png").exists()


@pytest.mark.parametrize("script", ["xgboost", "random_forest"])
def test_without_a_temporary_directory_only_the_pictures_are_missing(image: str, tree: Tree, script: str) -> None:
    tree.bundled(script, **{"xgboost": {"num_round": "2"}, "random_forest": {"n-estimators": "2"}}[script])
    answer = tree.run(image, "--read-only")
    assert answer.returncode == 0, answer.stderr
    assert "WARNING: no pictures" in answer.stdout + answer.stderr
    assert any((tree.root / "model").iterdir())


# -- what is in it ---------------------------------------------------------------------------------------------------


def ask(image: str, script: str) -> Any:
    answer = docker("run", "--rm", "--network", "none", image, "python", "-c", script, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def label(image: str, name: str) -> str:
    return docker("image", "inspect", "--format", f'{{{{index .Config.Labels "{name}"}}}}', image).stdout.strip()


@pytest.mark.representative
def test_it_trusts_whom_debian_trusts_and_nobody_else(image: str) -> None:
    """F4 of the security review: the certificates of the machine that built it were in it."""
    found = ask(image, TRUST_SCRIPT)
    assert found["trusted"] > 50
    assert {name: found[name] for name in ("changed", "unknown", "local", "secrets")} == {
        "changed": [],
        "unknown": 0,
        "local": [],
        "secrets": [],
    }
    variables = docker("run", "--rm", image, "env").stdout
    assert not re.findall(r"^\w*(?:CERT|CA_BUNDLE|PROXY|INDEX_URL)\w*=", variables, re.MULTILINE | re.IGNORECASE)


@pytest.mark.representative
def test_it_holds_what_its_lock_says_and_nothing_else(image: str) -> None:
    """F3 of the security review: five packages were in no pin, and pip was three years old."""
    found = ask(image, INSTALLED_SCRIPT)
    lock = (ROOT / label(image, "trainbox.lock")).read_text()
    assert f"sha256:{hashlib.sha256(lock.encode()).hexdigest()}" == label(image, "trainbox.lock.digest")
    wanted = requirements.requirements_of(f"trainbox[{','.join(extras(image))}]", (ROOT / "pyproject.toml").read_text())
    chosen = requirements.choose(lock, [*wanted, "pip"])
    expected = {name: re.split(r"==| ", text)[1] for name, (text,) in chosen.items()}
    versions = {requirements.normalize(name): version for name, version in found["versions"].items()}
    del versions["trainbox"]
    # Nothing that runs needs it, unless PyTorch is there, which asks for it.
    if "torch" not in versions:
        expected.pop("setuptools", None)
    assert versions == expected
    assert found["changed"] == []
    assert [path for path in found["unclaimed"] if "/trainbox/train_scripts" not in path] == []
    answer = docker("run", "--rm", "--network", "none", image, "python", "-m", "pip", "check")
    assert answer.returncode == 0, answer.stdout


def test_it_says_what_it_is(image: str) -> None:
    (about,) = json.loads(docker("image", "inspect", image).stdout)
    labels = about["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "trainbox"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["trainbox.variant"] in {"cpu", "gpu"}
    for capability in ("accept-bind-to-port", "multi-models"):
        assert labels[f"com.amazonaws.sagemaker.capabilities.{capability}"] == "true"
    assert labels["org.opencontainers.image.base.name"]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", labels["org.opencontainers.image.base.digest"])
    python = docker("run", "--rm", image, "python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").stdout
    assert labels["trainbox.python"] == python.strip()
    platform = f"py{python.strip().replace('.', '')}-{ {'amd64': 'x86_64', 'arm64': 'aarch64'}[about['Architecture']] }"
    assert labels["trainbox.lock"] == f"locks/image-{labels['trainbox.variant']}-{platform}.txt"
    assert about["Created"] == "1980-01-01T00:00:00Z", "the time of the build is not in its id"
    assert about["Os"] == "linux"
    assert about["Architecture"] in {"amd64", "arm64"}
    assert about["Config"]["Entrypoint"] == ["/opt/venv/bin/trainbox-entry"], "a shell form would keep the signals"


def test_there_is_no_compiler_no_cache_no_test_and_nothing_below_opt_ml(image: str) -> None:
    look = (
        "ls -d /opt/ml /root/.cache /build 2>/dev/null; command -v gcc cc make;"
        " find /opt/venv -name 'test_*.py' -path '*/tests/*' ! -path '*/torch/*' ! -path '*/joblib/*' | head -n 3"
    )
    assert docker("run", "--rm", image, "bash", "-c", look).stdout == ""


def test_it_holds_no_secret(image: str) -> None:
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image).stdout.lower()
    assert "copy /layer/package" in history
    assert not any(word in history for word in ("password", "token", "secret", "aws_access"))


@pytest.mark.representative
def test_it_stays_within_its_budget(image: str) -> None:
    sizes = ROOT / "tools" / "image" / "sizes.py"
    said = subprocess.run([sys.executable, sizes, image], capture_output=True, text=True, check=False)
    print(said.stdout)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "dependencies" in said.stdout


# -- frameworks of which something was left out ----------------------------------------------------------------------


def test_pytorch_is_whole_where_a_training_job_needs_it_for_any_user(image: str, tree: Tree) -> None:
    """Data loaders, DDP over gloo, distributed checkpoints, `torch.export`, and `torch.compile` without a compiler."""
    if "torch" not in extras(image):
        pytest.skip("no PyTorch in this image")
    (tree.root / "code" / "train.py").write_text(TORCH_SCRIPT)
    tree.root.joinpath("model").chmod(0o777)
    answer = tree.run(
        image,
        *("--user", "1234", "--env", "OMP_NUM_THREADS=1"),
        command=("torchrun", "--standalone", "--nproc-per-node", "2", "/opt/ml/code/train.py"),
    )
    assert answer.returncode == 0, answer.stderr
    assert sorted(line for line in answer.stdout.splitlines() if line.startswith("rank")) == [
        "rank 0 of 2",
        "rank 1 of 2",
    ]
