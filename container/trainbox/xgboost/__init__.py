"""What the script that trains with XGBoost is made of: rows, matrices, segments, scores, members, folds, the model."""

from trainbox.tabular.plots import draw_pictures
from trainbox.tabular.samples import Matrix
from trainbox.tabular.texts import explain
from trainbox.xgboost.cluster import Alone, Group, collective
from trainbox.xgboost.data import Data, find_device, meet, read_data
from trainbox.xgboost.folds import (
    Fold,
    FoldResult,
    join_folds,
    load_folds,
    out_of_fold,
    predictions_file,
    save_fold_curves,
    save_folds,
    split_folds,
    summarize,
    take_rows,
)
from trainbox.xgboost.former import Former, read_former
from trainbox.xgboost.matrices import Bins, plain_matrix
from trainbox.xgboost.metrics import Truths, declare, evaluate, line, metric_names, objective_of
from trainbox.xgboost.model import (
    cut,
    describe,
    save_curves,
    save_importance,
    save_models,
    save_output,
    thin_rows,
)
from trainbox.xgboost.model_check import Model, check_model
from trainbox.xgboost.params import Params, booster_parameters, check_members, notes
from trainbox.xgboost.segments import (
    Progress,
    best_round,
    chosen_round,
    identify,
    is_finished,
    resume,
    save_progress,
)
from trainbox.xgboost.training import Matrices, boost

__all__ = [
    "Alone",
    "Bins",
    "Data",
    "Fold",
    "FoldResult",
    "Former",
    "Group",
    "Matrices",
    "Matrix",
    "Model",
    "Params",
    "Progress",
    "Truths",
    "best_round",
    "boost",
    "booster_parameters",
    "check_members",
    "check_model",
    "chosen_round",
    "collective",
    "cut",
    "declare",
    "describe",
    "draw_pictures",
    "evaluate",
    "explain",
    "find_device",
    "identify",
    "is_finished",
    "join_folds",
    "line",
    "load_folds",
    "meet",
    "metric_names",
    "notes",
    "objective_of",
    "out_of_fold",
    "plain_matrix",
    "predictions_file",
    "read_data",
    "read_former",
    "resume",
    "save_curves",
    "save_fold_curves",
    "save_folds",
    "save_importance",
    "save_models",
    "save_output",
    "save_progress",
    "split_folds",
    "summarize",
    "take_rows",
    "thin_rows",
]
