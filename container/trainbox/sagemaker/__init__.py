"""The side of the SageMaker SDK v3: `Trainbox` makes a `ModelTrainer` with source code run our supervisor."""

import secrets
from pathlib import Path
from typing import Any, Literal

from trainbox.contract.credentials.checkpoint_keys import KEY_BYTES
from trainbox.contract.hyperparameters import ArgumentStyle
from trainbox.errors import TrainboxError

try:
    from sagemaker.train.distributed import DistributedConfig  # type: ignore[import-not-found]
except ImportError as error:
    _MISSING = str(error)

    class DistributedConfig:  # type: ignore[no-redef]
        """In place of the SDK's, where there is none: this package can be imported, but no job described."""

        def __init__(self, **_: object) -> None:
            raise TrainboxError(
                f"trainbox.sagemaker.Trainbox needs version 3 of the SageMaker SDK: {_MISSING}",
                hint="pip install 'sagemaker-train>=1.27'; version 2, `sagemaker`, has to live in another environment",
            )


__all__ = ["Trainbox"]

_DRIVER = "trainbox_driver.py"
#: The shell that runs the SDK's sm_train.sh becomes the driver, which becomes the supervisor: PID 1, which gets the
#: signals. A child would not get any: a shell that waits for one passes none on.
_BECOME_DRIVER = f"exec $SM_PYTHON_CMD /opt/ml/input/data/sm_drivers/distributed_drivers/{_DRIVER}"


class Trainbox(DistributedConfig):  # type: ignore[misc]
    """Run the script of a `ModelTrainer` by the supervisor `train` of an image that has trainbox.

    The script gets SIGTERM and time to save, a failed job says why, and hyperparameters and channels arrive as they
    are, also with quotes and dashes that break the SDK's own start (sagemaker-train 1.27.0):

        ModelTrainer(..., source_code=SourceCode(source_dir="src", entry_script="train.py"), distributed=Trainbox())

    Args:
        processes_per_host: Processes on each host, 1 or more, with `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `MASTER_ADDR`
            and `MASTER_PORT` as torchrun sets them; by default as many as the launcher sees fit.
        launcher: Who starts them: `plain`, the supervisor itself, or `torchrun`, torch elastic; by default `auto`.
        arguments: How hyperparameters become arguments of the script: `json` as the SDK's own drivers write them
            (`--flag true`), `toolkit` as sagemaker-training does (`--flag True`), or another style of the setting
            `trainbox_arguments`.
        grace_seconds: From SIGTERM to SIGKILL; by default the image's own 100, which SageMaker's 120 leave room for.
        peer_timeout_seconds: To wait for the names of all hosts; by default the image's own 120.

    Every other setting (docs/settings.md) is a hyperparameter or a variable in `ModelTrainer(environment=...)`.

    Raises:
        TrainboxError: The SDK is not installed.
        ValueError: A value is of the wrong type or out of range (pydantic's `ValidationError` is one).
    """

    processes_per_host: int | None = None
    launcher: Literal["auto", "plain", "torchrun"] | None = None
    arguments: ArgumentStyle = "json"
    grace_seconds: float | None = None
    peer_timeout_seconds: float | None = None

    def model_post_init(self, _context: object) -> None:
        """Refuse here, not minutes later in a container, what the supervisor would refuse."""
        if self.processes_per_host is not None and self.processes_per_host < 1:
            raise ValueError(f"processes_per_host: found {self.processes_per_host}, expected 1 or more")
        for name in ("grace_seconds", "peer_timeout_seconds"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 <= seconds < float("inf"):
                raise ValueError(f"{name}: found {seconds}, expected a number of seconds, 0 or more")

    @property
    def driver_dir(self) -> str:
        """What the SDK copies into the container."""
        return str(Path(__file__).with_name("driver"))

    @property
    def driver_script(self) -> str:
        """What the SDK writes into its shell script behind `python .../distributed_drivers/`: two lines of it.

        The first looks whether the image can run the job, the second becomes what runs it.
        """
        return f"{_DRIVER} --check\n{_BECOME_DRIVER}"

    def model_dump(self, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - pydantic's own signature
        """The values as the driver reads them, a key for the hosts, and the end of the SDK's own preparation.

        The key is another one for each job. It lies with the job's code in S3; a `TRAINBOX_PEER_KEY` of the
        `ModelTrainer` takes its place.

        The SDK (`environment.py` of 1.27.0) has a shell read each value between single quotes without escaping it: a
        quote in a hyperparameter is run as a command, a channel named `my-data` ends the job. Our values come first,
        so the last of them ends the quotes and becomes the driver before any such value is read. To an SDK that
        escapes, it is text like any other, and the lines of `driver_script` do the same.
        """
        return {
            **super().model_dump(**options),
            "peer_key": secrets.token_hex(KEY_BYTES),
            "start": f"'; {_BECOME_DRIVER}; : '",
        }
