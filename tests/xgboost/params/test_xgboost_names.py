"""Every name that a release of XGBoost or of the built-in took is taken, or the error says what to give instead.

The names are those of XGBoost's sources at its releases 0.40 to 3.4.1 (`DMLC_DECLARE_FIELD`, `DMLC_DECLARE_ALIAS`,
`SetParam`), but for what is no parameter of training (plots of trees, fields of the model format), of its estimators
(`sklearn.py`), and of `hyperparameter_validation.py` of sagemaker-xgboost-container at its releases 1.0 to 3.0.
"""

import re

import pytest

from trainbox.contract.params import names, parse
from trainbox.errors import HyperparameterError
from trainbox.xgboost.params.hyperparameters import XGBoostParams, notes
from trainbox.xgboost.params.retired import INSTEAD

OF_XGBOOST = """
    aft_loss_distribution aft_loss_distribution_scale alpha base_score boost_from_average booster cache_opt
    colmat_dtype colsample_bylevel colsample_bynode colsample_bytree data debug_synchronize debug_verbose
    default_direction deterministic_histogram device disable_default_eval_metric dsplit dump_format dump_stats
    enable_experimental_json_serialization enable_feature_grouping eta eval_metric eval_train expectile_alpha
    extmem_single_page fail_on_invalid_gpu_id feature_selector fix_list_weight fmap gamma gpu_batch_nrows gpu_id
    gpu_page_size grow_policy huber_slope interaction_constraints iteration_begin iteration_end lambda lambda_bias
    lambdarank_bias_norm lambdarank_normalization lambdarank_num_pair_per_sample lambdarank_pair_method
    lambdarank_score_normalization lambdarank_unbiased learning_rate max_bin max_cached_hist_node max_cat_threshold
    max_cat_to_onehot max_conflict_rate max_delta_step max_depth max_leaves max_row_perbatch max_search_group
    min_child_weight min_split_loss model_dir model_in model_out monotone_constraints multi_strategy n_gpus n_jobs
    name_dump name_fmap name_pred ndcg_exp_gain normalize_type nthread ntree_limit num_class num_feature
    num_output_group num_pairsample num_parallel_tree num_roots num_round num_target objective one_drop opt_dense_col
    parallel_option pred_margin predictor prob_buffer_row process_type quantile_alpha random_state rate_drop
    refresh_leaf reg_alpha reg_gamma reg_lambda reg_lambda_bias sample_type sampling_method save_period
    scale_pos_weight seed seed_per_iteration silent single_precision_histogram size_leaf_vector sketch_eps
    sketch_ratio skip_drop sparse_threshold split_evaluator subsample task test_flag test_path tolerance top_k
    train_path tree_method tweedie_variance_power updater updater_seq use_buffer use_cuda_async_pool use_rmm
    validate_features validate_parameters verbosity
"""
OF_ESTIMATORS = """
    early_stopping_rounds enable_categorical eval_set feature_types feature_weights importance_type missing
    n_estimators qid use_label_encoder verbose xgb_model
"""
OF_THE_BUILT_IN = """
    _kfold _num_cv_round _tuning_objective_metric csv_weights save_model_on_termination use_dask_gpu_training
"""
TAKEN = {*names(XGBoostParams)}


@pytest.mark.parametrize("name", sorted({*OF_XGBOOST.split(), *OF_ESTIMATORS.split()} - TAKEN))
def test_a_name_that_is_not_taken_any_more_comes_with_what_to_give_instead(name: str) -> None:
    with pytest.raises(HyperparameterError, match=re.escape(f"'{name}' is not taken: {INSTEAD[name]}")):
        parse(XGBoostParams, {"num_round": "1", name: "1"}, program="xgboost_train.py")


def test_what_is_given_instead_is_taken() -> None:
    given = re.compile(r"\bgive ([a-z_]+)|or ([a-z_]+_constraints)| in ([a-z_]+_features)$")
    instead = {name for told in INSTEAD.values() for found in given.findall(told) for name in found if name}
    assert {"num_round", "nthread", "seed", "device", "verbosity", "categorical_features"} <= instead <= TAKEN
    assert not TAKEN & {*INSTEAD}


def test_all_names_of_the_built_in_are_taken() -> None:
    assert {*OF_THE_BUILT_IN.split(), "silent", "predictor", "dsplit", "lambda_bias", "prob_buffer_row"} <= TAKEN
    params = parse(XGBoostParams, {"num_round": "1", "silent": "1"})
    assert "silent is not read: verbosity says how much XGBoost itself says" in notes(params)
