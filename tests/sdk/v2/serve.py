"""Serves models in the local mode of SageMaker's SDK v2; runs under `.venv-sdk-v2`: `python serve.py JOB RESULT`.

JOB is a JSON file with `image_uri` and `model_data` (of `Model`), `serving_port` and `container_root` (of local mode),
`rows`, `source_dir` (it has an `inference.py`), and `inputs` (a directory for each strategy). RESULT becomes a JSON
file.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sagemaker.deserializers import (  # type: ignore[import-not-found]  # not in .venv
    CSVDeserializer,
    JSONDeserializer,
    NumpyDeserializer,
    StringDeserializer,
)
from sagemaker.local import LocalSession  # type: ignore[import-not-found]  # not in .venv
from sagemaker.model import Model  # type: ignore[import-not-found]  # not in .venv
from sagemaker.predictor import Predictor  # type: ignore[import-not-found]  # not in .venv
from sagemaker.serializers import (  # type: ignore[import-not-found]  # not in .venv
    CSVSerializer,
    JSONLinesSerializer,
    JSONSerializer,
    LibSVMSerializer,
    NumpySerializer,
)

SERIALIZERS = (CSVSerializer(), JSONSerializer(), JSONLinesSerializer(), NumpySerializer())
DESERIALIZERS = (CSVDeserializer(), JSONDeserializer(), NumpyDeserializer())


def make_model(session: Any, job: dict[str, Any], **more: object) -> Any:
    """A model, with the arguments of the seeds' calls."""
    return Model(
        image_uri=job["image_uri"],
        model_data=job["model_data"],
        role="arn:aws:iam::111111111111:role/SageMaker-ExecutionRole",
        name="team-project-model-v1",
        predictor_cls=Predictor,
        sagemaker_session=session,
        **more,
    )


def deploy(model: Any, **how: object) -> Any:
    """An endpoint that answers: local mode waits for it in any case, and with `wait` half a minute more."""
    return model.deploy(initial_instance_count=1, instance_type="local", wait=False, **how)


def predict(session: Any, job: dict[str, Any]) -> dict[str, Any]:
    """What each pair of serializers answers, and what is answered without one, or to a wrong row."""
    predictor = deploy(make_model(session, job))
    answers: dict[str, Any] = {}
    rows = job["rows"]
    for serializer in SERIALIZERS:
        for deserializer in DESERIALIZERS:
            predictor.serializer, predictor.deserializer = serializer, deserializer
            answer = predictor.predict(np.array(rows) if isinstance(serializer, NumpySerializer) else rows)
            name = f"{type(serializer).__name__} {type(deserializer).__name__}"
            answers[name] = answer.tolist() if isinstance(answer, np.ndarray) else answer
    predictor.serializer, predictor.deserializer = LibSVMSerializer(), CSVDeserializer()
    answers["libsvm"] = predictor.predict("\n".join(f"0:{first} 1:{second}" for first, second in rows))
    predictor.serializer, predictor.deserializer = CSVSerializer(), StringDeserializer()
    answers["wrong"] = predictor.predict("1,abc")
    plain = Predictor(predictor.endpoint_name, session)
    answers["untyped"] = plain.predict("1,2").decode()
    predictor.delete_endpoint()
    return answers


def ask_hooks(session: Any, job: dict[str, Any]) -> Any:
    """What a model answers whose `inference.py` is given with it: the SDK writes the archive anew, with the code."""
    code = {"entry_point": "inference.py", "source_dir": job["source_dir"], "code_location": "s3://no-bucket/code"}
    model = make_model(session, job, **code)
    predictor = deploy(model, serializer=CSVSerializer(), deserializer=JSONDeserializer())
    answer = predictor.predict(job["rows"])
    predictor.delete_endpoint()
    return answer


def transform(session: Any, job: dict[str, Any], strategy: str) -> str:
    """Where the answers to the files of a directory are."""
    output = f"{job['container_root']}/{strategy}"
    transformer = make_model(session, job).transformer(
        instance_count=1,
        instance_type="local",
        strategy=strategy,
        assemble_with="Line",
        accept="text/csv",
        env={"TRAINBOX_BATCH_NEWLINE": "false"},
        output_path=f"file://{output}",
    )
    transformer.transform(f"file://{job['inputs'][strategy]}", content_type="text/csv", split_type="Line", logs=False)
    return output


def main() -> None:
    """Serve one after the other: local mode has one port."""
    job_file, result_file = (Path(argument) for argument in sys.argv[1:])
    job = json.loads(job_file.read_text())
    session = LocalSession()
    session.config = {"local": {"local_code": True, **{n: job[n] for n in ("container_root", "serving_port")}}}
    result = {
        "answers": predict(session, job),
        "outputs": {strategy: transform(session, job, strategy) for strategy in job["inputs"]},
        "hooks": ask_hooks(session, job),
    }
    result_file.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
