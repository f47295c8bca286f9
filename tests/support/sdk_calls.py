"""What an SDK asks of SageMaker, recorded in place of being sent: see `tests/sdk/calls.py`."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PROGRAM = Path(__file__).parents[1] / "sdk" / "calls.py"


def record_calls(
    python: Path, directory: Path, examples: Sequence[str], *, modules: str = ""
) -> list[tuple[str, dict[str, Any]]]:
    """Run code that uses an SDK; return its requests in their order, each with its operation.

    Args:
        python: Of the environment that has the SDK.
        directory: Where it runs.
        examples: The code, which runs in this order.
        modules: Of the defaults of the SDK, in YAML.
    """
    (directory / "examples.json").write_text(json.dumps(examples))
    config = directory / "config.yaml"
    config.write_text(
        f'SchemaVersion: "1.0"\nSageMaker: {{PythonSDK: {{Modules: {{TelemetryOptOut: true, {modules}}}}}}}\n'
    )
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "AWS_ACCESS_KEY_ID": "dummy",
        "AWS_SECRET_ACCESS_KEY": "dummy",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(config),
        "SAGEMAKER_ADMIN_CONFIG_OVERRIDE": str(config),
    }
    done = subprocess.run(
        [python, _PROGRAM, "examples.json", "requests.json"],
        cwd=directory,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [(operation, given) for operation, given in json.loads((directory / "requests.json").read_text())]
