"""Retired hyperparameters, and the log lines about choices made for the user."""

from collections.abc import Iterator, Mapping

from trainbox.xgboost.params.declaration import RETIRED_OBJECTIVE, Declaration
from trainbox.xgboost.params.rules import RETIRED_UPDATERS, device, find_unread

#: Hyperparameters that nothing reads, and why.
UNREAD = {
    "predictor": "XGBoost predicts where it trains, see device",
    "dsplit": "rows are all that XGBoost splits over hosts",
    "sketch_eps": "max_bin says how fine a feature is cut, about 1 / sketch_eps",
    "lambda_bias": "XGBoost does not regularize the bias any more",
    "prob_buffer_row": "XGBoost has no buffer of rows any more",
    "deterministic_histogram": "histograms are always deterministic",
    "single_precision_histogram": "XGBoost chooses the precision of histograms itself",
    "silent": "verbosity says how much XGBoost itself says",
    "use_dask_gpu_training": "there is no Dask here: device=cuda trains with one process for each GPU",
    "save_model_on_termination": "a job that is asked to stop always saves its model and can go on",
}

_OF_THE_DATA = "it is found from the data; leave it out"
_OF_CHANNELS = "rows come from the channels 'train' and 'validation'; leave it out"
_OF_THE_MODEL = "the model is always saved as xgboost-model in the model's directory; leave it out"
_NOT_ANY_MORE = "XGBoost has given it up, or it changes no model; leave it out"
#: What is not taken, though a release of XGBoost, its command line or its estimators took it: what to give instead.
INSTEAD: Mapping[str, str] = {
    "n_estimators": "give num_round",
    "n_jobs": "give nthread",
    "random_state": "give seed",
    "verbose": "give verbosity",
    "gpu_id": "give device=cuda:N",
    "n_gpus": "give device=cuda, which trains with one process for each GPU",
    "reg_gamma": "give gamma",
    "reg_lambda_bias": "XGBoost does not regularize the bias any more; leave it out",
    "sketch_ratio": "give max_bin",
    "num_pairsample": "give lambdarank_num_pair_per_sample",
    "fix_list_weight": "give lambdarank_normalization",
    "enable_categorical": "name the features in categorical_features",
    "feature_types": "name the features in categorical_features",
    "save_period": "give checkpoint_every",
    "eval_train": "give eval_train_every",
    "importance_type": "all kinds are in output/data/feature-importance.json; leave it out",
    "use_label_encoder": "labels of classes are the numbers 0, 1, …; leave it out",
    "tolerance": "give num_round: a line is fitted in so many rounds",
    "split_evaluator": "give monotone_constraints or interaction_constraints",
    "default_direction": "XGBoost learns where a missing value goes; leave it out",
    "updater_seq": "give updater",
    **dict.fromkeys(("num_feature", "num_output_group", "num_target", "num_roots", "boost_from_average"), _OF_THE_DATA),
    **dict.fromkeys(("data", "train_path", "test_path", "test_flag", "eval_set", "qid"), _OF_CHANNELS),
    **dict.fromkeys(("model_out", "model_dir", "name_dump", "name_fmap", "name_pred", "fmap"), _OF_THE_MODEL),
    **dict.fromkeys(("dump_format", "dump_stats", "pred_margin", "ntree_limit"), _OF_THE_MODEL),
    **dict.fromkeys(("iteration_begin", "iteration_end", "task"), _OF_THE_MODEL),
    **dict.fromkeys(("model_in", "xgb_model"), "a job goes on from its own checkpoints; leave it out"),
    **dict.fromkeys(
        (
            *("cache_opt", "colmat_dtype", "debug_synchronize", "debug_verbose", "enable_feature_grouping"),
            *("enable_experimental_json_serialization", "extmem_single_page", "fail_on_invalid_gpu_id"),
            *("gpu_batch_nrows", "gpu_page_size", "max_conflict_rate", "max_row_perbatch", "max_search_group"),
            *("opt_dense_col", "parallel_option", "size_leaf_vector", "sparse_threshold", "use_buffer"),
            *("use_cuda_async_pool", "use_rmm", "validate_features", "validate_parameters"),
            "disable_default_eval_metric",
        ),
        _NOT_ANY_MORE,
    ),
}


def notes(params: Declaration) -> tuple[str, ...]:
    """Return the log lines, in the order of the hyperparameters' declaration."""
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
            yield f"updater {name} was removed from XGBoost; " + (
                f"using {instead} instead" if instead else "it is left out"
            )
    if params.booster == "gblinear" and not params.updater:
        yield "booster=gblinear is trained with updater=coord_descent: of shotgun, XGBoost's choice, results vary"
