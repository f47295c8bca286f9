"""Jobs whose plans are recorded: what SageMaker would give the container, and what its host has."""

import json
from collections.abc import Mapping, Sequence

import msgspec

from trainbox.contract.environment import Machine

PYTHON = {"train.py": "print('training')\n"}
TORCH = ("torch",)
CPU = Machine(cpus=8, interfaces=("eth0", "lo"))
CPU_TORCH = Machine(cpus=8, interfaces=("eth0", "lo"), modules=TORCH)
FOUR_GPUS = Machine(cpus=48, gpus=4, interfaces=("eth0", "lo"), modules=TORCH)
EIGHT_GPUS_EFA = Machine(cpus=96, gpus=8, interfaces=("eth0", "lo"), efa=True, modules=TORCH)
FILE = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
ONE_HOST = {"current_host": "algo-1", "hosts": ["algo-1"]}
CHECKPOINTS = {"LocalPath": "/opt/ml/checkpoints"}
CHANNELS = {
    "train": {**FILE, "ContentType": "text/csv"},
    "validation": {**FILE, "S3DistributionType": "ShardedByS3Key"},
}


class FrozenJob(msgspec.Struct, frozen=True, kw_only=True):
    """One job."""

    hyperparameters: Mapping[str, object] = msgspec.field(default_factory=lambda: {"sagemaker_program": "train.py"})
    #: None: there is no such file.
    resources: Mapping[str, object] | None = msgspec.field(default_factory=lambda: ONE_HOST)
    channels: Mapping[str, object] | None = msgspec.field(default_factory=lambda: CHANNELS)
    checkpoints: Mapping[str, object] | None = msgspec.field(default_factory=lambda: CHECKPOINTS)
    #: Beside PATH and the root.
    env: Mapping[str, str] = msgspec.field(default_factory=lambda: {"TRAINING_JOB_NAME": "frozen-job"})
    machine: Machine = CPU
    #: Files below `code/`.
    code: Mapping[str, str] = msgspec.field(default_factory=lambda: PYTHON)


def hosts(count: int, current: int = 1, **more: object) -> dict[str, object]:
    """`resourceconfig.json` as SageMaker writes it."""
    names = sorted(f"algo-{number}" for number in range(1, count + 1))
    group = {"instance_group_name": "homogeneousCluster", "instance_type": "ml.m5.xlarge", "hosts": names}
    return {
        "current_host": f"algo-{current}",
        "current_instance_type": "ml.m5.xlarge",
        "current_group_name": "homogeneousCluster",
        "hosts": names,
        "instance_groups": [group],
        "network_interface_name": "eth0",
        **more,
    }


def hetero(current: str, group: str) -> dict[str, object]:
    """The same for a cluster of two groups."""
    groups: Sequence[Mapping[str, object]] = (
        {"instance_group_name": "readers", "instance_type": "ml.c5.xlarge", "hosts": ["algo-1"]},
        {"instance_group_name": "trainers", "instance_type": "ml.p4d.24xlarge", "hosts": ["algo-2", "algo-3"]},
    )
    return {
        "current_host": current,
        "current_instance_type": "ml.c5.xlarge" if group == "readers" else "ml.p4d.24xlarge",
        "current_group_name": group,
        "hosts": ["algo-1", "algo-2", "algo-3"],
        "instance_groups": groups,
        "network_interface_name": "eth0",
    }


def given(program: str = "train.py", **values: object) -> dict[str, object]:
    """Hyperparameters as plain strings, as the API sends them."""
    return {"sagemaker_program": program, **{name: str(value) for name, value in values.items()}}


def by_sdk(**values: object) -> dict[str, object]:
    """Hyperparameters as SDK v2 sends them: every value as JSON."""
    own = {
        "sagemaker_program": "train.py",
        "sagemaker_submit_directory": "s3://bucket/frozen-job/source/sourcedir.tar.gz",
        "sagemaker_container_log_level": 20,
        "sagemaker_job_name": "frozen-job",
        "sagemaker_region": "eu-west-1",
    }
    return {name: json.dumps(value) for name, value in (own | values).items()}


_STYLES: dict[str, object] = {
    "sagemaker_program": "train.py",
    "layers": '[1, 2.5, "a"]',
    "flag": "true",
    "nothing": "null",
    "object": '{"b": 1, "a": {"c": [true]}}',
    "text": '"quoted text"',
    "plain": "a b",
}
_ODD: dict[str, object] = {
    "sagemaker_program": "train.py",
    "": "an empty name",
    "e": "1e-05",
    "big": "123456789012345678901234567890",
    "a-b": "dashed",
    "A_B": "capitals",
    "a b": "blank",
    "a=b": "equals",
    "grün": "ümlaut 🚂",
    "nan": "NaN",
    "number": 3,
    "fraction": 0.1,
    "list": [1, "two", None],
    "object": {"k": "v"},
    "true": True,
    "none": None,
    "empty": "",
    "spaces": "  x  ",
    "lines": "one\ntwo",
}
_SECRETS: dict[str, object] = {
    "sagemaker_program": "train.py",
    "api_token": "not-a-real-token",
    "DB-PASSWORD": "not-a-real-password",
    "nested": json.dumps({"secretKey": "not-a-real-key", "max_tokens": 7}),
    "num_tokens_seen": "11",
}
_SETTINGS = {
    "trainbox_arguments": "json",
    "trainbox_grace_seconds": "30",
    "trainbox_peer_timeout_seconds": "60",
    "trainbox_launcher": "torchrun",
    "trainbox_backend": "gloo",
    "trainbox_max_restarts": "1",
    "trainbox_hang_seconds": "12.5",
    "trainbox_start_seconds": "600",
    "trainbox_preflight": "full",
    "trainbox_preflight_strict": "true",
    "trainbox_drill": "kill 1@20, freeze 0@40",
}
_PIPES = {
    "train": {"TrainingInputMode": "Pipe", "ContentType": "application/x-recordio-protobuf"},
    "validation": {"TrainingInputMode": "Pipe", "RecordWrapperType": "RecordIO"},
    "static": {"TrainingInputMode": "FastFile"},
}
_VARIABLES = {name.upper(): value for name, value in _SETTINGS.items()}
_PACKAGE = {
    "pyproject.toml": "[build-system]\nrequires = ['setuptools']\n",
    "jobs/__init__.py": "",
    "jobs/fit.py": "print('training')\n",
    "requirements.txt": "example==1.0\n",
}
_WITH_REQUIREMENTS = {**PYTHON, "requirements.txt": "example==1.0\n"}

JOBS: dict[str, FrozenJob] = {
    # the least, and the files that may be missing
    "bare": FrozenJob(resources=None, channels=None, checkpoints=None, env={}),
    "one-host": FrozenJob(hyperparameters=given(eta=0.1, max_depth=5), resources=hosts(1)),
    "two-hosts-second": FrozenJob(hyperparameters=given(eta=0.1), resources=hosts(2, 2)),
    "three-hosts-third": FrozenJob(hyperparameters=given(), resources=hosts(3, 3)),
    "eleven-hosts-in-order-of-names": FrozenJob(hyperparameters=given(), resources=hosts(11, 2)),
    "checkpoints-with-s3": FrozenJob(
        checkpoints={"LocalPath": "/opt/ml/input/checkpoints-here", "S3Uri": "s3://bucket/checkpoints"}
    ),
    # processes and launchers
    "two-processes": FrozenJob(hyperparameters=given(processes_per_host=2), resources=hosts(1)),
    "two-processes-two-hosts": FrozenJob(hyperparameters=given(processes_per_host=2), resources=hosts(2, 2)),
    "two-processes-port-of-the-request": FrozenJob(
        hyperparameters=given(processes_per_host=2), resources=hosts(2), env={"MASTER_PORT": "4711"}
    ),
    "plain-asked-for-with-torch": FrozenJob(
        hyperparameters=given(trainbox_launcher="plain", processes_per_host=2), machine=CPU_TORCH
    ),
    "plain-with-a-switch-of-the-sdk": FrozenJob(
        hyperparameters=given(trainbox_launcher="plain", sagemaker_torch_distributed_enabled="true"), machine=CPU_TORCH
    ),
    "torchrun-on-one-cpu": FrozenJob(hyperparameters=given(trainbox_launcher="torchrun"), machine=CPU_TORCH),
    "torchrun-on-two-hosts": FrozenJob(
        hyperparameters=given(trainbox_launcher="torchrun", processes_per_host=2, eta=0.1),
        resources=hosts(2, 2),
        machine=CPU_TORCH,
    ),
    "torchrun-with-own-variables": FrozenJob(
        hyperparameters=given(trainbox_launcher="torchrun"),
        resources=hosts(2),
        env={"OMP_NUM_THREADS": "3", "NCCL_SOCKET_IFNAME": "eth9", "MASTER_PORT": "4711", "PYTHONPATH": "/mine"},
        machine=CPU_TORCH,
    ),
    "torchrun-without-torch": FrozenJob(hyperparameters=given(trainbox_launcher="torchrun")),
    "torchrun-of-a-shell-script": FrozenJob(
        hyperparameters=given("run.sh", trainbox_launcher="torchrun"), code={"run.sh": "echo\n"}, machine=CPU_TORCH
    ),
    # machines
    "four-gpus": FrozenJob(resources=hosts(1), machine=FOUR_GPUS),
    "torchrun-on-four-gpus": FrozenJob(hyperparameters=given(trainbox_launcher="torchrun"), machine=FOUR_GPUS),
    "torchrun-on-efa": FrozenJob(
        hyperparameters=given(trainbox_launcher="torchrun"), resources=hosts(2, 2), machine=EIGHT_GPUS_EFA
    ),
    "interface-that-is-not-there": FrozenJob(
        hyperparameters=given(trainbox_launcher="torchrun"),
        resources=hosts(2, network_interface_name="ethwe"),
        machine=CPU_TORCH,
    ),
    "interfaces-unknown": FrozenJob(
        hyperparameters=given(trainbox_launcher="torchrun"),
        resources=hosts(2),
        machine=Machine(cpus=2, modules=TORCH),
    ),
    "neurons-and-tools": FrozenJob(machine=Machine(cpus=4, neurons=2, smddprun=True, smddpmprun=True)),
    "nccl-without-gpus": FrozenJob(
        hyperparameters=given(trainbox_launcher="torchrun", trainbox_backend="nccl"), machine=CPU_TORCH
    ),
    # bundled scripts
    "xgboost": FrozenJob(hyperparameters={"trainbox_script": "xgboost", "num_round": "10"}, resources=hosts(1)),
    "xgboost-on-two-hosts": FrozenJob(
        hyperparameters={"trainbox_script": "xgboost_train", "num_round": "10"}, resources=hosts(2)
    ),
    "xgboost-on-four-gpus": FrozenJob(
        hyperparameters={"trainbox_script": "xgboost", "num_round": "10", "device": "cuda"}, machine=FOUR_GPUS
    ),
    "forest": FrozenJob(hyperparameters={"n-estimators": "10"}, env={"TRAINBOX_SCRIPT": "random_forest"}),
    "pytorch": FrozenJob(hyperparameters={"trainbox_script": "pytorch", "epochs": "2"}, machine=CPU_TORCH),
    "pytorch-on-two-hosts-of-four-gpus": FrozenJob(
        hyperparameters={"trainbox_script": "pytorch", "epochs": "2"}, resources=hosts(2, 2), machine=FOUR_GPUS
    ),
    "no-program": FrozenJob(hyperparameters={}),
    # programs of one's own
    "shell-script": FrozenJob(hyperparameters=given("run.sh", eta=0.1), code={"run.sh": "echo training\n"}),
    "executable": FrozenJob(hyperparameters=given("bin/fit", eta=0.1), code={"bin/fit": "#!/bin/sh\necho training\n"}),
    "module-of-a-package": FrozenJob(hyperparameters=given("jobs/fit.py", eta=0.1), code=_PACKAGE),
    "requirements": FrozenJob(code=_WITH_REQUIREMENTS),
    "name-with-a-dash": FrozenJob(hyperparameters=given("-train.py"), code={"-train.py": ""}),
    "program-that-is-not-there": FrozenJob(hyperparameters=given("trian.py")),
    "program-of-the-variable": FrozenJob(hyperparameters={}, env={"SAGEMAKER_PROGRAM": "train.py"}),
    "source-in-the-channel-code": FrozenJob(channels={**CHANNELS, "code": FILE}),
    # what SDK v2's `distribution=` sends
    "sdk-mpi": FrozenJob(
        hyperparameters=by_sdk(
            sagemaker_mpi_enabled=True,
            sagemaker_mpi_num_of_processes_per_host=2,
            sagemaker_mpi_custom_mpi_options="--verbose",
        ),
        resources=hosts(2),
        machine=CPU_TORCH,
    ),
    "sdk-mpi-without-torch": FrozenJob(
        hyperparameters=by_sdk(sagemaker_mpi_enabled=True, sagemaker_mpi_num_of_processes_per_host=2)
    ),
    "sdk-smddp": FrozenJob(
        hyperparameters=by_sdk(
            sagemaker_distributed_dataparallel_enabled=True, sagemaker_instance_type="ml.p4d.24xlarge"
        ),
        resources=hosts(2),
        machine=msgspec.structs.replace(EIGHT_GPUS_EFA, smddprun=True, modules=("smdistributed", "torch")),
    ),
    "sdk-smddp-without-its-module": FrozenJob(
        hyperparameters=by_sdk(sagemaker_distributed_dataparallel_enabled=True), machine=FOUR_GPUS
    ),
    "sdk-pytorchddp": FrozenJob(
        hyperparameters=by_sdk(sagemaker_pytorch_ddp_enabled=True), resources=hosts(2), machine=FOUR_GPUS
    ),
    "sdk-torch-distributed": FrozenJob(
        hyperparameters=by_sdk(sagemaker_torch_distributed_enabled=True, epochs=3),
        resources=hosts(2),
        machine=FOUR_GPUS,
    ),
    "sdk-parameter-server": FrozenJob(hyperparameters=by_sdk(sagemaker_parameter_server_enabled=True)),
    "hetero-reader": FrozenJob(resources=hetero("algo-1", "readers")),
    "hetero-trainer": FrozenJob(
        hyperparameters=by_sdk(
            sagemaker_torch_distributed_enabled=True, sagemaker_distribution_instance_groups=["trainers"]
        ),
        resources=hetero("algo-3", "trainers"),
        machine=EIGHT_GPUS_EFA,
    ),
    "topology": FrozenJob(resources=hosts(2, topology=[{"host": "algo-1", "nodes": ["a", "b"]}])),
    # hyperparameters and channels
    "pipes": FrozenJob(channels=_PIPES),
    "arguments-toolkit": FrozenJob(hyperparameters=_STYLES),
    "arguments-json": FrozenJob(hyperparameters={**_STYLES, "trainbox_arguments": "json"}),
    "odd-hyperparameters": FrozenJob(hyperparameters=_ODD),
    "odd-hyperparameters-json": FrozenJob(hyperparameters={**_ODD, "trainbox_arguments": "json"}),
    "secrets": FrozenJob(hyperparameters=_SECRETS),
    # settings
    "settings-by-hyperparameter": FrozenJob(
        hyperparameters={**given(eta=0.1), **_SETTINGS}, resources=hosts(2), machine=CPU_TORCH
    ),
    "settings-by-variable": FrozenJob(
        hyperparameters=given(eta=0.1), resources=hosts(2), env=_VARIABLES, machine=CPU_TORCH
    ),
    "setting-that-is-none": FrozenJob(hyperparameters=given(trainbox_launcher="mpirun")),
    "preflight-off": FrozenJob(hyperparameters=given(trainbox_preflight="off", processes_per_host=2)),
    "studio-local-mode": FrozenJob(
        hyperparameters=given(processes_per_host=2), resources=hosts(2), env={"SM_STUDIO_LOCAL_MODE": "True"}
    ),
    "environment-of-the-platform": FrozenJob(
        env={
            "TRAINING_JOB_NAME": "frozen-job",
            "AWS_REGION": "eu-west-1",
            "SAGEMAKER_TRAINING_MODULE": "framework.training:main",
            "SM_HP_MP_PARAMETERS": '{"ddp": true}',
            "PYTHONUNBUFFERED": "0",
            "PYTHONPATH": "/lib:/other",
        }
    ),
}
