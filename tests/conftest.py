"""What every test shares: no variable of this machine's own SageMaker, and hypothesis without a clock."""

import os

import hypothesis
import pytest

# Two shared cores: an example that waits for a processor is not a slow one. CI replays the same examples every time.
hypothesis.settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("default")

_SCRUBBED = ("SM_", "SAGEMAKER_", "TRAINBOX_", "TRAINING_JOB_", "RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def _no_job_around_us(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(_SCRUBBED):
            monkeypatch.delenv(name)
