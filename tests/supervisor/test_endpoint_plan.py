"""Pure: how many workers a server has and why, and how its loader is started."""

import sys
from pathlib import Path

import pytest

from trainbox.contract.hosting import read_hosting
from trainbox.supervisor.endpoint.plan import Capacity, count_workers, plan_loader

GIB = 2**30
MANY = "SAGEMAKER_MODEL_SERVER_WORKERS"
MODELS = {"SAGEMAKER_MULTI_MODEL": "true"}


@pytest.mark.parametrize(
    ("variables", "capacity", "count", "reason"),
    [
        ({}, Capacity(cpus=4), 4, "one for each processor of the container"),
        ({MANY: "7"}, Capacity(cpus=4, memory_bytes=GIB), 7, MANY),
        ({MANY: "1024"}, Capacity(cpus=4), 1024, MANY),
        ({}, Capacity(cpus=4, gpus=2), 2, "one for each GPU"),
        ({**MODELS, MANY: "1024"}, Capacity(cpus=4), 256, MANY),
        ({**MODELS}, Capacity(cpus=4, gpus=2), 4, "one for each processor of the container"),
        ({}, Capacity(cpus=6, has_shared_memory=False), 1, "there is no /dev/shm: taken for a serverless endpoint"),
        ({}, Capacity(cpus=4, memory_bytes=8 * GIB), 4, "one for each processor of the container"),
        (
            {},
            Capacity(cpus=64, memory_bytes=GIB),
            8,
            "the container has 1,024 MiB of memory, and each may need 107 MiB beside the model",
        ),
        (
            {"TRAINBOX_MAX_BODY_MB": "1"},
            Capacity(cpus=64, memory_bytes=GIB),
            26,
            "the container has 1,024 MiB of memory, and each may need 35 MiB beside the model",
        ),
        (
            {},
            Capacity(cpus=2, memory_bytes=100 * 2**20),
            1,
            "the container has 100 MiB of memory, and each may need 107 MiB beside the model",
        ),
    ],
)
def test_workers_are_as_many_as_the_request_says_or_the_container_bears(
    variables: dict[str, str], capacity: Capacity, count: int, reason: str
) -> None:
    chosen = count_workers(read_hosting(variables), capacity, loader_bytes=100 * 2**20)
    assert (chosen.count, chosen.reason) == (count, reason)


def test_the_loader_has_one_thread_whatever_the_request_says_and_the_descriptors_of_its_supervisor(
    tmp_path: Path,
) -> None:
    env = {"TRAINBOX_ROOT": str(tmp_path), "OMP_NUM_THREADS": "8", "PYTHONUNBUFFERED": "0"}
    hosting = read_hosting({**env, "SAGEMAKER_STARTUP_TIMEOUT": "30"})
    plan = plan_loader(hosting, env, descriptors=(7, 4), is_ready=lambda _pid: True)
    (loader,) = plan.children
    assert loader.argv == (sys.executable, "-P", "-m", "trainbox.serving", "--link", "7", "--page", "4")
    many = plan_loader(hosting, env, descriptors=(7, 4, 9), is_ready=lambda _pid: True)
    assert many.children[0].argv == (*loader.argv, "--store", "9")
    assert {loader.environment[f"{name}_NUM_THREADS"] for name in ("OMP", "OPENBLAS", "MKL")} == {"1"}
    assert loader.environment["PYTHONUNBUFFERED"] == "0"
    assert loader.descriptors == (7, 4)
    assert loader.readiness is not None
    assert loader.readiness.timeout_seconds == 30.0
    assert {2, 3, 4, 7} <= plan.restart.final_codes
    assert plan.grace_seconds < 30
