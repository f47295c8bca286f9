"""What the code for both SDKs has in common: ranges, whose classes have the same names, and static hyperparameters."""

from collections.abc import Iterable

from trainbox.tuning.printed.places import RemoteJob
from trainbox.tuning.printed.python_code import CodeCall
from trainbox.tuning.search_space import CategoricalRange, IntegerRange, ParameterRange

#: What an SDK sets itself where it uploads the source.
_OF_THE_SOURCE = ("sagemaker_program", "sagemaker_submit_directory")


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
