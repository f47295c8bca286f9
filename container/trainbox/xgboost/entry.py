"""The entry of a script that trains with XGBoost: catch SIGTERM, import XGBoost, log the choices made.

Importing this module does not import XGBoost, so that the declarations of a script are known without it.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from trainbox.contract.job import default_in_environment
from trainbox.tabular.script import ending_in_order, log_line, without
from trainbox.xgboost.params.hyperparameters import XGBoostParams, notes

if TYPE_CHECKING:
    from trainbox.xgboost.boosting import BoostingSession

#: Optional parts of XGBoost that training does not use; `make bench-xgboost` prints the import with them.
_UNUSED = ("sklearn", "pandas", "xgboost.sklearn")


@contextmanager
def session(params: XGBoostParams) -> Iterator["BoostingSession"]:
    """Start a session; the end of the block disconnects from the other processes of the job.

    A stop before there is anything to save ends the block, and is not an error.

    >>> with session(trainbox.hyperparameters(XGBoostParams)) as run:
    ...     boosting = run.read()

    Args:
        params: The hyperparameters.
    """
    with ending_in_order():
        load()
        from trainbox.xgboost.boosting import BoostingSession  # noqa: PLC0415 - it needs XGBoost

        for note in notes(params):
            log_line(note)
        with ExitStack() as stack:
            yield BoostingSession(params, stack)


def load() -> None:
    """Import XGBoost without the optional parts; does nothing if the script has imported it already."""
    # Threads of OpenMP spin for milliseconds after each of a round's hundred parallel loops. Where something else wants
    # the processor that takes ten times as long as the loops do.
    default_in_environment("OMP_WAIT_POLICY", "passive")
    if "xgboost" not in sys.modules:
        with without(*_UNUSED):
            importlib.import_module("xgboost")
