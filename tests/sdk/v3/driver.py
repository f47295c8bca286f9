"""Runs one job in the local mode of SageMaker's SDK v3; runs under `.venv-sdk-v3`: `python driver.py JOB RESULT`.

JOB is a JSON file with `image`, `hosts`, `root` (what the SDK mounts lies below it), `source` (of `SourceCode`, or
null), `distributed` (`[class, arguments]`, or null), `channels` (name and directory), `hyperparameters` and
`environment`. RESULT becomes a JSON file; the job's log goes to stdout, as the SDK writes it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from sagemaker.train.configs import Compute, InputData, SourceCode  # type: ignore[import-not-found]  # not in .venv
from sagemaker.train.distributed import Torchrun  # type: ignore[import-not-found]  # not in .venv
from sagemaker.train.model_trainer import Mode, ModelTrainer  # type: ignore[import-not-found]  # not in .venv

from trainbox.sagemaker import Trainbox

CLASSES = {"Torchrun": Torchrun, "Trainbox": Trainbox}


def run(job: dict[str, Any]) -> dict[str, str]:
    """What came of the job: nothing, or the exception of `train`."""
    kind, arguments = job["distributed"] or (None, {})
    trainer = ModelTrainer(
        training_mode=Mode.LOCAL_CONTAINER,
        training_image=job["image"],
        compute=Compute(instance_type="local_cpu", instance_count=job["hosts"]),
        source_code=SourceCode(**job["source"]) if job["source"] else None,
        distributed=CLASSES[kind](**arguments) if kind else None,
        hyperparameters=job["hyperparameters"],
        environment=job["environment"],
        input_data_config=[InputData(channel_name=name, data_source=path) for name, path in job["channels"].items()],
        role="arn:aws:iam::111111111111:role/dummy",
        local_container_root=job["root"],
    )
    try:
        trainer.train()
    except RuntimeError as error:
        return {"error": str(error)}
    return {}


if __name__ == "__main__":
    job_file, result_file = (Path(argument) for argument in sys.argv[1:])
    result_file.write_text(json.dumps(run(json.loads(job_file.read_text()))))
