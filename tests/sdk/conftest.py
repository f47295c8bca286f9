"""What the tests of both SDKs share: Compose, and an environment in which an SDK meets nothing of AWS."""

import fcntl
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.containers import engine, image, unavailable

__all__ = ["engine", "image"]

REPOSITORY = Path(__file__).parents[2]
#: Nothing listens there: what an SDK asks of the world outside fails at once.
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="session")
def compose(image: str) -> Path:
    """The directory made by `tools/compose`: `bin` is for PATH, the directory itself for DOCKER_CONFIG."""
    assert image
    made = subprocess.run(
        [REPOSITORY / "tools" / "compose"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if made.returncode:
        unavailable(" / ".join(made.stderr.splitlines()[-2:]))
    return Path(made.stdout.strip())


@pytest.fixture(scope="session")
def network(engine: Any, compose: Path) -> str:
    """The network of local mode, which both SDKs give to all their jobs on a machine and never remove.

    Two jobs that begin at once on an engine without it would each make one, and Docker lets two have the same name.
    """
    name = "sagemaker-local"
    directory = os.open(compose, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        if name not in {found["Name"] for found in engine.networks(names=[name])}:
            engine.create_network(name, labels={"com.docker.compose.network": name})
    finally:
        os.close(directory)
    return name


@pytest.fixture(scope="session")
def sdk_python() -> Mapping[str, Path]:
    """The interpreter of each SDK's own virtual environment, by its version: `v2` and `v3`."""
    found = {version: REPOSITORY / f".venv-sdk-{version}" for version in ("v2", "v3")}
    if missing := [directory.name for directory in found.values() if not (directory / ".ready").exists()]:
        unavailable(f"no SageMaker SDK in {' and '.join(missing)}: make venv-sdk")
    return {version: directory / "bin" / "python" for version, directory in found.items()}


@pytest.fixture
def sdk_env(compose: Path, network: str, tmp_path: Path) -> dict[str, str]:
    """The environment of an SDK's process: no account, no telemetry, no files but below the test's directory."""
    assert network
    home = tmp_path / "home"
    scratch = tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    config = home / "sagemaker.yaml"
    config.write_text(
        'SchemaVersion: "1.0"\n'
        "SageMaker:\n"
        "  PythonSDK: {Modules: {TelemetryOptOut: true, Session: {DefaultS3Bucket: no-bucket}}}\n"
    )
    engines = {name: value for name, value in os.environ.items() if name.startswith("DOCKER_")}
    return {
        **engines,
        "PATH": f"{compose / 'bin'}:{os.environ['PATH']}",
        "DOCKER_CONFIG": str(compose),
        "HOME": str(home),
        "TMPDIR": str(scratch),
        "AWS_ACCESS_KEY_ID": "dummy",
        "AWS_SECRET_ACCESS_KEY": "dummy",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAGEMAKER_ADMIN_CONFIG_OVERRIDE": str(config),
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(config),
        "HTTP_PROXY": NOWHERE,
        "HTTPS_PROXY": NOWHERE,
        "http_proxy": NOWHERE,
        "https_proxy": NOWHERE,
        "PYTHONUNBUFFERED": "1",
    }
