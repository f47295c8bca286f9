"""The entry of a script that trains with scikit-learn: catch SIGTERM, import scikit-learn, check the job.

Importing this module does not import scikit-learn, so that the declarations of a script are known without it.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from trainbox.sklearn.params import EstimatorParams
from trainbox.tabular.script import ending_in_order, without

if TYPE_CHECKING:
    from trainbox.sklearn.training import ForestSession

#: Optional parts of scikit-learn that training does not use; `make bench-xgboost` prints the import with them.
_UNUSED = ("pandas", "rich")
#: skops imports all packages of scikit-learn; this one imports PyTorch, if installed (1.3 s of CPU, same benchmark).
TORCH_BACKEND = "sklearn.externals.array_api_compat.torch"


@contextmanager
def session(params: EstimatorParams) -> Iterator["ForestSession"]:
    """Start a session; the end of the block disconnects from the other hosts of the job.

    A stop before there is anything to save ends the block, and is not an error.

    >>> with session(trainbox.hyperparameters(EstimatorParams)) as run:
    ...     data = run.read()

    Args:
        params: The hyperparameters.

    Raises:
        RunError: An estimator that is fitted on one host was requested on several.
        HyperparameterError: The job has a channel `model`, and what it trains cannot start from a model.
    """
    with ending_in_order():
        load()
        from trainbox.sklearn.training import ForestSession  # noqa: PLC0415 - it needs scikit-learn

        with ExitStack() as stack:
            run = ForestSession(params, stack)
            yield run
            run.draw()


def load(module: str = "trainbox.sklearn.training") -> None:
    """Import scikit-learn without the optional parts; if the script has imported it already, all of it stays.

    Args:
        module: What of ours is imported with it.
    """
    with without(TORCH_BACKEND, *([] if "sklearn" in sys.modules else _UNUSED)):
        importlib.import_module(module)
