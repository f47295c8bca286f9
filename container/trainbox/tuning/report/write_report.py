"""Write the report of a tuning job next to its record."""

from pathlib import Path

from trainbox.errors import RunError
from trainbox.local.results.record import write_whole
from trainbox.tuning.records import TuningRecord
from trainbox.tuning.report.curves import read_curves
from trainbox.tuning.report.importance import rank_importance

try:
    from trainbox.tuning.report.page import write_page
except ModuleNotFoundError as error:
    raise RunError(f"a report needs the package {error.name!r}", hint="pip install 'trainbox[tuning]'") from None

FILE_NAME = "report.html"


def write_report(record: TuningRecord, directory: Path) -> Path:
    """Write `report.html`, whole or not at all; return where it is.

    Args:
        record: Of the tuning job, at any moment.
        directory: Of the tuning job, with the results of its trials.

    Raises:
        RunError: It cannot be written.
    """
    page = write_page(record, read_curves(directory, record), rank_importance(record))
    path = directory / FILE_NAME
    write_whole(path, page.encode(errors="backslashreplace"))
    return path
