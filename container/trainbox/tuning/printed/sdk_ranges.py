"""What the code for both SDKs has in common: what a tuner is told, and ranges, whose classes have the same names."""

from collections.abc import Iterable

from trainbox.tuning.printed.boto3_request import metric_definitions
from trainbox.tuning.printed.places import RemoteJob
from trainbox.tuning.printed.python_code import CodeCall
from trainbox.tuning.printed.ranges import number_of_trials, remote_ranges
from trainbox.tuning.printed.tuning_job_spec import TuningJobSpec
from trainbox.tuning.search_space import CategoricalRange, IntegerRange, ParameterRange

#: What an SDK sets itself where it uploads the source.
_OF_THE_SOURCE = ("sagemaker_program", "sagemaker_submit_directory")


def search_members(spec: TuningJobSpec, remote: RemoteJob) -> dict[str, object]:
    """Pure: what the tuners of both SDKs are told of the search."""
    ranges = remote_ranges(spec)
    return {
        "objective_metric_name": spec.search.objective.name,
        "objective_type": spec.search.objective.goal,
        "metric_definitions": metric_definitions(spec.job, spec.search.objective),
        "hyperparameter_ranges": {each.name: range_call(each) for each in ranges},
        "strategy": spec.search.strategy,
        "max_jobs": number_of_trials(spec, ranges),
        "max_parallel_jobs": spec.search.max_parallel,
        "early_stopping_type": "Auto" if spec.search.early_stopping else "Off",
        "base_tuning_job_name": remote.name,
        "random_seed": spec.search.seed,
    }


def range_call(given: ParameterRange) -> CodeCall:
    """Pure: write a range as the SDK's object."""
    if isinstance(given, CategoricalRange):
        return CodeCall(_class_of(given), ([*given.values],))
    scaling = {} if given.scaling == "Auto" else {"scaling_type": given.scaling}
    return CodeCall(_class_of(given), (given.low, given.high), scaling)


def range_classes(ranges: Iterable[ParameterRange]) -> set[str]:
    """Pure: the classes that `range_call` uses, for the import."""
    return {_class_of(each) for each in ranges}


def static_for_sdk(remote: RemoteJob) -> dict[str, str]:
    """Pure: the static hyperparameters, without those that the SDK adds when it uploads the source."""
    own = _OF_THE_SOURCE if remote.source else ()
    return {name: text for name, text in remote.static.items() if name not in own}


def _class_of(given: ParameterRange) -> str:
    if isinstance(given, CategoricalRange):
        return "CategoricalParameter"
    return "IntegerParameter" if isinstance(given, IntegerRange) else "ContinuousParameter"
