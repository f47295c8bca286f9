"""Print the plan of a search as a tuning job of SageMaker."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from trainbox.tuning.printed.boto3_request import print_boto3
from trainbox.tuning.printed.sdk_v2 import print_sdk_v2
from trainbox.tuning.printed.sdk_v3 import print_sdk_v3
from trainbox.tuning.printed.tuning_job_spec import TuningJobSpec
from trainbox.tuning.tuning_file import read_tuning
from trainbox.tuning.tuning_plan import TuningPlan

Form = Literal["v2", "v3", "boto3"]
_PRINTERS: Mapping[Form, Callable[[TuningJobSpec], str]] = {
    "v2": print_sdk_v2,
    "v3": print_sdk_v3,
    "boto3": print_boto3,
}
FORMS = tuple(_PRINTERS)


def print_search(plan: TuningPlan, form: Form) -> str:
    """Return Python code that starts the same search on SageMaker.

    Args:
        plan: Of the search on this machine.
        form: With which of Amazon's packages.

    Raises:
        RunError: SageMaker has no such tuning job.
    """
    parents = [read_tuning(Path(directory)) for directory in plan.warm_start]
    spec = TuningJobSpec(
        name=plan.name,
        job=plan.spec,
        search=plan.settings,
        hide=plan.hide,
        parents=tuple(parent.name for parent in parents if parent is not None),
    )
    return _PRINTERS[form](spec)
