"""Runs one job in the local mode of SageMaker's SDK v2; runs under `.venv-sdk-v2`: `python driver.py JOB RESULT`.

JOB is a JSON file with the keyword arguments of `Estimator`, and beside them `channels`, the argument of `fit`,
`container_root`, where the SDK keeps what it mounts, and, for an endpoint of the model, `rows` to predict and its port.
RESULT becomes a JSON file; the log of the job goes to stdout, as the SDK writes it.
"""

import json
import sys
from pathlib import Path

from sagemaker.deserializers import JSONDeserializer  # type: ignore[import-not-found]  # not in .venv
from sagemaker.estimator import Estimator  # type: ignore[import-not-found]  # not in .venv
from sagemaker.local import LocalSession  # type: ignore[import-not-found]  # not in .venv
from sagemaker.serializers import CSVSerializer  # type: ignore[import-not-found]  # not in .venv


def run(job: dict[str, object]) -> dict[str, object]:
    """What came of the job: where its model is and what that predicts, or the exception of `fit`."""
    session = LocalSession()
    local = {"local_code": True, "container_root": job.pop("container_root"), "serving_port": job.pop("port", 8080)}
    session.config = {"local": local}
    channels, rows = job.pop("channels") or None, job.pop("rows", None)
    estimator = Estimator(
        role="arn:aws:iam::111111111111:role/dummy", instance_type="local", sagemaker_session=session, **job
    )
    try:
        estimator.fit(channels)
    except RuntimeError as error:
        return {"error": str(error)}
    if rows is None:
        return {"model": estimator.model_data}
    # Local mode waits until it answers in any case, and with `wait` half a minute more.
    how = {"initial_instance_count": 1, "instance_type": "local", "wait": False}
    predictor = estimator.deploy(**how, serializer=CSVSerializer(), deserializer=JSONDeserializer())
    answer = predictor.predict(rows)
    predictor.delete_endpoint()
    return {"model": estimator.model_data, "answer": answer}


if __name__ == "__main__":
    job_file, result_file = (Path(argument) for argument in sys.argv[1:])
    result_file.write_text(json.dumps(run(json.loads(job_file.read_text()))))
