"""What the script that grows forests is made of: rows, trees in groups, scores, checkpoints, the model."""

from trainbox.sklearn.boosted import boost, explain_boost, save_booster, score_booster
from trainbox.sklearn.data import Data, meet, read_data
from trainbox.sklearn.estimators import find_source, fit_estimator, make_estimator, score_estimator
from trainbox.sklearn.forests import (
    Part,
    assemble,
    check_rows,
    gather_parts,
    groups_left,
    grow,
    lay_out,
    slices,
    take_stock,
)
from trainbox.sklearn.former import Former, read_former, refuse_former
from trainbox.sklearn.judging import Judge
from trainbox.sklearn.model import describe, find_importance, save_curves, save_importance, save_model
from trainbox.sklearn.packing import Forest, pack, unpack
from trainbox.sklearn.params import Params
from trainbox.sklearn.resuming import History, identify, open_store, resume, save_parts
from trainbox.sklearn.scores import declare
from trainbox.tabular.plots import draw_pictures

__all__ = [
    "Data",
    "Forest",
    "Former",
    "History",
    "Judge",
    "Params",
    "Part",
    "assemble",
    "boost",
    "check_rows",
    "declare",
    "describe",
    "draw_pictures",
    "explain_boost",
    "find_importance",
    "find_source",
    "fit_estimator",
    "gather_parts",
    "groups_left",
    "grow",
    "identify",
    "lay_out",
    "make_estimator",
    "meet",
    "open_store",
    "pack",
    "read_data",
    "read_former",
    "refuse_former",
    "resume",
    "save_booster",
    "save_curves",
    "save_importance",
    "save_model",
    "save_parts",
    "score_booster",
    "score_estimator",
    "slices",
    "take_stock",
    "unpack",
]
