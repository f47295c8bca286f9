"""Where everything lies below `/opt/ml`; the root is a parameter, so the same job runs anywhere."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

DEFAULT_ROOT = Path("/opt/ml")
ROOT_VARIABLE = "TRAINBOX_ROOT"


class Layout(msgspec.Struct, frozen=True):
    """The tree of one training container.

    Source: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
    """

    root: Path = DEFAULT_ROOT

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "Layout":
        """The tree at `TRAINBOX_ROOT`, or at `/opt/ml` where that is unset or empty."""
        return cls(Path(env.get(ROOT_VARIABLE) or DEFAULT_ROOT))

    @property
    def input_dir(self) -> Path:
        """Everything the platform brings."""
        return self.root / "input"

    @property
    def config_dir(self) -> Path:
        """The JSON files that describe the job."""
        return self.input_dir / "config"

    @property
    def data_dir(self) -> Path:
        """One directory (File mode) or FIFO per epoch (Pipe mode) for each channel."""
        return self.input_dir / "data"

    @property
    def code_dir(self) -> Path:
        """The user's source, where sagemaker-training puts it too; the working directory of the script."""
        return self.root / "code"

    @property
    def model_dir(self) -> Path:
        """What becomes `model.tar.gz`."""
        return self.root / "model"

    @property
    def output_dir(self) -> Path:
        """The failure file and `data/`."""
        return self.root / "output"

    @property
    def output_data_dir(self) -> Path:
        """What becomes `output.tar.gz`."""
        return self.output_dir / "data"

    @property
    def intermediate_dir(self) -> Path:
        """`output/intermediate`, a convention of sagemaker-training."""
        return self.output_dir / "intermediate"

    @property
    def failure_file(self) -> Path:
        """The text that becomes the job's `FailureReason`."""
        return self.output_dir / "failure"

    @property
    def checkpoints_dir(self) -> Path:
        """The default of `CheckpointConfig.LocalPath`."""
        return self.root / "checkpoints"

    def channel_dir(self, name: str) -> Path:
        """The directory of a channel in File mode; in Pipe mode the stem of its FIFOs (`<path>_0`, …)."""
        return self.data_dir / name
