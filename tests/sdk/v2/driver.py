"""Runs one job in the local mode of SageMaker's SDK v2; runs under `.venv-sdk-v2`: `python driver.py JOB RESULT`.

JOB is a JSON file with the keyword arguments of `Estimator`, and beside them `channels`, the argument of `fit`, and
`container_root`, where the SDK keeps what it mounts. RESULT becomes a JSON file; the log of the job goes to stdout, as
the SDK writes it.
"""

import json
import sys
from pathlib import Path

from sagemaker.estimator import Estimator  # type: ignore[import-not-found]  # not in .venv
from sagemaker.local import LocalSession  # type: ignore[import-not-found]  # not in .venv


def run(job: dict[str, object]) -> dict[str, object]:
    """What came of the job: where its model is, or the exception of `fit`."""
    session = LocalSession()
    session.config = {"local": {"local_code": True, "container_root": job.pop("container_root")}}
    channels = job.pop("channels") or None
    estimator = Estimator(
        role="arn:aws:iam::111111111111:role/dummy", instance_type="local", sagemaker_session=session, **job
    )
    try:
        estimator.fit(channels)
    except RuntimeError as error:
        return {"error": str(error)}
    return {"model": estimator.model_data}


if __name__ == "__main__":
    job_file, result_file = (Path(argument) for argument in sys.argv[1:])
    result_file.write_text(json.dumps(run(json.loads(job_file.read_text()))))
