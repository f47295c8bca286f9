"""What is done otherwise than a hyperparameter says, or chosen where none does: one line each for the log."""

from collections.abc import Iterator

from trainbox.xgboost.declaration import RETIRED_OBJECTIVE, Declaration
from trainbox.xgboost.rules import RETIRED_UPDATERS, device, find_unread

#: Hyperparameters that nothing reads, and why.
UNREAD = {
    "predictor": "XGBoost predicts where it trains, see device",
    "dsplit": "rows are all that XGBoost splits over hosts",
    "sketch_eps": "max_bin says how fine a feature is cut, about 1 / sketch_eps",
    "lambda_bias": "XGBoost does not regularize the bias any more",
    "prob_buffer_row": "XGBoost has no buffer of rows any more",
    "deterministic_histogram": "histograms are always deterministic",
    "single_precision_histogram": "XGBoost chooses the precision of histograms itself",
    "use_dask_gpu_training": "there is no Dask here: device=cuda trains with one process for each GPU",
    "save_model_on_termination": "a job that is asked to stop always saves its model and can go on",
}


def notes(params: Declaration) -> tuple[str, ...]:
    """The lines, in the order of the hyperparameters' declaration."""
    unread = (f"{name} is not read: {why}" for name, why in UNREAD.items() if getattr(params, name) is not None)
    return (*_choices(params), *find_unread(params), *unread)


def _choices(params: Declaration) -> Iterator[str]:
    if params.early_stopping_rounds is not None and params.kfold is not None:
        yield "early stopping looks at the rows that a fold holds out, so their scores are somewhat too good"
    if "interval-regression-accuracy" in {
        *params.eval_metric,
        (params.tuning_objective_metric or "").partition(":")[2],
    }:
        yield "interval-regression-accuracy is better when it is larger, and maximized; the built-in minimizes it"
    if params.objective == RETIRED_OBJECTIVE:
        yield f"objective {RETIRED_OBJECTIVE} is reg:squarederror, its name today"
    if params.tree_method == "gpu_hist":
        yield f"tree_method=gpu_hist is trained as tree_method=hist with device={device(params)}"
    elif params.use_dask_gpu_training and params.device == "cpu":
        yield "use_dask_gpu_training=true is trained with device=cuda"
    for name in params.updater:
        if name in RETIRED_UPDATERS:
            instead = RETIRED_UPDATERS[name]
            yield f"updater {name} is no more: " + (f"{instead} is taken" if instead else "it is left out")
    if params.booster == "gblinear" and not params.updater:
        yield "booster=gblinear is trained with updater=coord_descent: of shotgun, XGBoost's choice, results vary"
