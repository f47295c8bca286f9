"""What the models of several folds say together."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: What their models say is a class.
_VOTED = ("multi:softmax", "binary:hinge")


def combine_folds(predictions: Sequence[Floats], objective: str) -> Floats:
    """Combine the predictions of all folds' models, as the built-in's hosting does.

    Classes are voted on, the lowest wins a draw; of all else it is the mean.
    """
    stacked = np.stack(predictions)
    if len(predictions) == 1 or objective not in _VOTED:
        mean: Floats = stacked.mean(axis=0)
        return mean
    votes = [np.unique(column, return_counts=True) for column in stacked.T]
    return np.array([classes[counts.argmax()] for classes, counts in votes], np.float32)
