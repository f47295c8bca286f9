"""Every hyperparameter of SageMaker's built-in and of XGBoost 3: name, type, range and default."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from trainbox.contract.model_card import MISSING
from trainbox.xgboost.params.catalogue import OBJECTIVES

#: What XGBoost called `reg:squarederror` before 0.90.
RETIRED_OBJECTIVE = "reg:linear"

ObjectiveName: TypeAlias = Literal[*OBJECTIVES, RETIRED_OBJECTIVE]  # type: ignore[valid-type]  # mypy: written-out ones
Share = Annotated[float, Meta(gt=0, le=1)]
Chance = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
Amount = Annotated[float, Meta(ge=0)]
Direction = Literal[-1, 0, 1]

_NAMES = {
    "lambda_": "lambda",
    "kfold": "_kfold",
    "num_cv_round": "_num_cv_round",
    "tuning_objective_metric": "_tuning_objective_metric",
}


class Declaration(msgspec.Struct, frozen=True, kw_only=True, rename=_NAMES):
    """The hyperparameters with types and ranges, without further checks; null is XGBoost's own default."""

    # The job
    num_round: Annotated[Count, Meta(description="boosting rounds")]
    early_stopping_rounds: (
        Annotated[Count, Meta(description="rounds without improvement until training ends")] | None
    ) = None
    checkpoint_every: Annotated[
        Count, Meta(description="rounds from one checkpoint to the next; part of the model")
    ] = 50
    eval_train_every: Annotated[
        int, Meta(ge=0, description="rounds from one evaluation of `train` to the next; 0 is the last round alone")
    ] = 10
    eval_metric: Annotated[tuple[str, ...], Meta(description="one or more; the last is the objective")] = ()
    tuning_objective_metric: (
        Annotated[str, Meta(description="the objective instead, such as `validation:auc`")] | None
    ) = None
    seed: Annotated[int, Meta(ge=-(2**31), lt=2**31, description="of every random choice")] = 0
    seed_per_iteration: Annotated[bool, Meta(description="seed each round by its number")] = False
    nthread: Annotated[Count, Meta(description="threads; by default one for each processor")] | None = None
    device: Annotated[str, Meta(pattern="^(cpu|cuda(:[0-9]+)?)$", description="`cpu`, `cuda` or `cuda:N`")] = "cpu"
    external_memory: Annotated[
        Literal["auto", "on", "off"], Meta(description="training data on disk; auto: where the memory is too small")
    ] = "auto"
    verbosity: Annotated[int, Meta(ge=0, le=3, description="log level of XGBoost")] = 1
    save_model_on_termination: (
        Annotated[bool, Meta(description="without effect: a stopped job always saves its model")] | None
    ) = None
    kfold: (
        Annotated[int, Meta(ge=2, description="parts of `train`, each once held out, for cross-validation")] | None
    ) = None
    num_cv_round: Annotated[Count, Meta(description="how often cross-validation is repeated")] = 1

    # The data
    csv_weights: Annotated[bool, Meta(description="whether CSV has the row's weight after the label")] = False
    label_columns: Annotated[Count, Meta(description="leading columns that are labels")] = 1
    group_column: Annotated[str, Meta(description="name or position of the column that groups rows")] | None = None
    categorical_features: Annotated[
        tuple[str, ...], Meta(description="names or positions of features whose values are codes 0, 1, …")
    ] = ()
    categorical: (
        Annotated[
            tuple[str, ...],
            Meta(description="names or positions of features all of whose cells are texts, numbers too"),
        ]
        | None
    ) = None
    unseen: Annotated[
        Literal["error", "missing"], Meta(description="what to do with a validation text that `train` does not have")
    ] = "error"
    missing: Annotated[tuple[str, ...], Meta(description="texts of CSV that mean a missing value")] = MISSING
    delimiter: Annotated[str, Meta(min_length=1, max_length=1, description="of CSV; detected by default")] | None = None

    # The objective
    objective: Annotated[ObjectiveName, Meta(description="learning objective")] = "reg:squarederror"
    num_class: Annotated[int, Meta(ge=2, description="number of classes, only for multi:*")] | None = None
    base_score: Annotated[float, Meta(description="first prediction; by default estimated from labels")] | None = None
    scale_pos_weight: Annotated[float, Meta(gt=0, description="weight of the positive class")] = 1.0
    multi_strategy: Annotated[
        Literal["one_output_per_tree", "multi_output_tree"], Meta(description="trees for each output, or for all")
    ] = "one_output_per_tree"
    tweedie_variance_power: Annotated[float, Meta(gt=1, lt=2, description="only for reg:tweedie")] = 1.5
    huber_slope: Annotated[float, Meta(gt=0, description="only for reg:pseudohubererror")] = 1.0
    quantile_alpha: Annotated[tuple[Chance, ...], Meta(description="only for reg:quantileerror, ascending")] = ()
    expectile_alpha: Annotated[tuple[Chance, ...], Meta(description="only for reg:expectileerror, ascending")] = ()
    aft_loss_distribution: Annotated[
        Literal["normal", "logistic", "extreme"], Meta(description="only for survival:aft")
    ] = "normal"
    aft_loss_distribution_scale: Annotated[float, Meta(gt=0, description="only for survival:aft")] = 1.0
    lambdarank_pair_method: Annotated[
        Literal["topk", "mean"], Meta(description="how rank:* draws pairs of rows: from the top, or a number for each")
    ] = "topk"
    lambdarank_num_pair_per_sample: (
        Annotated[Count, Meta(description="the top's size, or pairs for each row")] | None
    ) = None
    lambdarank_normalization: Annotated[bool, Meta(description="normalize the gradient of rank:*")] = True
    lambdarank_score_normalization: Annotated[bool, Meta(description="normalize it by differences of scores")] = True
    lambdarank_unbiased: Annotated[bool, Meta(description="correct for position bias of clicks")] = False
    lambdarank_bias_norm: Annotated[Amount, Meta(description="norm of the correction, for lambdarank_unbiased")] = 1.0
    ndcg_exp_gain: Annotated[bool, Meta(description="gain 2^label - 1 for NDCG, not the label itself")] = True

    # The training
    booster: Annotated[
        Literal["gbtree", "dart", "gblinear"], Meta(description="trees, trees with dropout, or a linear model")
    ] = "gbtree"
    eta: Annotated[Chance, Meta(description="learning rate; 0.3, and 0.5 of gblinear")] | None = None
    gamma: Annotated[Amount, Meta(description="least loss reduction that a split must bring; 0")] | None = None
    max_depth: Annotated[int, Meta(ge=0, description="deepest tree; 0 is no limit")] = 6
    max_leaves: Annotated[int, Meta(ge=0, description="most leaves of a tree; 0 is no limit")] = 0
    grow_policy: Annotated[Literal["depthwise", "lossguide"], Meta(description="order of splits")] = "depthwise"
    min_child_weight: Annotated[Amount, Meta(description="least sum of weights in a leaf")] = 1.0
    max_delta_step: Annotated[Amount, Meta(description="largest output of a leaf; 0 is no limit")] | None = None
    subsample: Annotated[Share, Meta(description="share of the rows drawn in each round")] = 1.0
    sampling_method: Annotated[
        Literal["uniform", "gradient_based"], Meta(description="rows drawn alike, or by their gradients")
    ] = "uniform"
    colsample_bytree: Annotated[Share, Meta(description="share of the features drawn for each tree")] = 1.0
    colsample_bylevel: Annotated[Share, Meta(description="share of the features drawn for each level")] = 1.0
    colsample_bynode: Annotated[Share, Meta(description="share of the features drawn for each split")] = 1.0
    feature_weights: (
        Annotated[
            tuple[Amount, ...] | dict[str, Amount],
            Meta(description="chances of the features in such draws: `(1,0.5,2)`, or `{name: 2}` and 1 for the others"),
        ]
        | None
    ) = None
    lambda_: Annotated[Amount, Meta(description="L2 regularization; 1, and 0 of gblinear")] | None = None
    alpha: Annotated[Amount, Meta(description="L1 regularization; 0")] | None = None
    tree_method: Annotated[
        Literal["auto", "hist", "approx", "exact", "gpu_hist"], Meta(description="how to find splits; auto is hist")
    ] = "auto"
    max_bin: Annotated[int, Meta(ge=2, description="bins of a feature's histogram")] = 256
    bins: (
        Annotated[
            Literal["sketch", "quantiles"],
            Meta(description="`sketch`, XGBoost's own, is the default; `quantiles` are exact and faster to compute"),
        ]
        | None
    ) = None
    max_cached_hist_node: Annotated[Count, Meta(description="nodes whose histograms are kept in memory")] | None = None
    num_parallel_tree: Annotated[Count, Meta(description="trees in each round")] = 1
    max_cat_to_onehot: Annotated[Count, Meta(description="most categories that are split one from the rest")] = 4
    max_cat_threshold: Annotated[Count, Meta(description="most categories considered in one split")] = 64
    monotone_constraints: (
        Annotated[
            tuple[Direction, ...] | dict[str, Direction],
            Meta(description="1 rising, -1 falling, 0 free, for each feature: `(1,0,-1)`, or `{name: 1}`"),
        ]
        | None
    ) = None
    interaction_constraints: Annotated[
        tuple[tuple[str, ...], ...], Meta(description="features that may meet in a branch: `[[0,1],[2,3]]`, or names")
    ] = ()
    updater: Annotated[tuple[str, ...], Meta(description="updaters by name; by default those of tree_method")] = ()
    refresh_leaf: Annotated[bool, Meta(description="whether the updater `refresh` also updates leaves")] = True
    process_type: Annotated[Literal["default", "update"], Meta(description="`update` is refused: needs a model")] = (
        "default"
    )
    rate_drop: Annotated[Chance, Meta(description="share of the trees dropped, only for dart")] = 0.0
    skip_drop: Annotated[Chance, Meta(description="chance of dropping none, only for dart")] = 0.0
    one_drop: Annotated[bool, Meta(description="drop at least one, only for dart")] = False
    sample_type: Annotated[
        Literal["uniform", "weighted"], Meta(description="how dropped trees are chosen, only for dart")
    ] = "uniform"
    normalize_type: Annotated[Literal["tree", "forest"], Meta(description="weight of new trees, only for dart")] = (
        "tree"
    )
    feature_selector: Annotated[
        Literal["cyclic", "shuffle", "random", "greedy", "thrifty"], Meta(description="only for gblinear")
    ] = "cyclic"
    top_k: Annotated[Count, Meta(description="features for greedy and thrifty; all by default")] | None = None

    # Other names
    learning_rate: Annotated[Chance, Meta(description="another name of eta")] | None = None
    min_split_loss: Annotated[Amount, Meta(description="another name of gamma")] | None = None
    reg_lambda: Annotated[Amount, Meta(description="another name of lambda")] | None = None
    reg_alpha: Annotated[Amount, Meta(description="another name of alpha")] | None = None

    # Retired: accepted, with a log line about what is done instead
    predictor: (
        Annotated[Literal["auto", "cpu_predictor", "gpu_predictor"], Meta(description="retired: see device")] | None
    ) = None
    dsplit: Annotated[Literal["row", "col"], Meta(description="retired: rows are split")] | None = None
    sketch_eps: Annotated[float, Meta(gt=0, lt=1, description="retired: see max_bin")] | None = None
    lambda_bias: Annotated[Chance, Meta(description="retired")] | None = None
    prob_buffer_row: Annotated[float, Meta(gt=1, description="retired")] | None = None
    deterministic_histogram: Annotated[bool, Meta(description="retired: always so")] | None = None
    single_precision_histogram: Annotated[bool, Meta(description="retired")] | None = None
    silent: Annotated[bool, Meta(description="retired: see verbosity")] | None = None
    use_dask_gpu_training: Annotated[bool, Meta(description="retired: see device")] | None = None
