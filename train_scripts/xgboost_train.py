"""Gradient boosted trees with XGBoost, from the channel `train` to `xgboost-model`.

    trainbox run xgboost --channel train=DIR --channel validation=DIR --hp num_round=100 --hp max_depth=5
    python train_scripts/xgboost_train.py --num_round 100 --channel train=DIR --channel validation=DIR
    docker run -e TRAINBOX_SCRIPT=xgboost -v TREE:/opt/ml IMAGE train

A drop-in for SageMaker's built-in XGBoost: the same hyperparameters, metric names and model file, and the same channels
(`train`, and `validation` or `test`; CSV, Parquet, libsvm or recordio-protobuf, the label first). The metrics of the
second channel are always called `validation:…`, so that a tuner's objective does not change with the channel's name;
the objective is the last of `eval_metric`.

A resumed job gives the same model as one that was never interrupted, bit for bit: training goes in segments of
`checkpoint_every` rounds, each from the bytes of the last one with a seed of its own, and checkpoints lie between
segments alone. On several hosts, or several GPUs of one, every process trains the same model on its own rows.
"""

import trainbox
from trainbox.xgboost import XGBoostParams, declare, session


class Params(XGBoostParams, frozen=True, kw_only=True):
    """The hyperparameters; `trainbox describe xgboost` lists them."""


def metrics(params: Params) -> tuple[trainbox.Metric, ...]:
    """What this script logs; `trainbox metrics xgboost --hp num_round=1 --hp eval_metric=auc` shows it."""
    return declare(params)


def main() -> None:
    """Read, agree with the other processes of the job, and train one model or one for each fold."""
    params = trainbox.hyperparameters(Params)
    with session(params) as run:
        boosting = run.read()  # the channels; processes that do not fit together are told here
        if params.kfold:
            boosting.cross_validate()
            return
        progress = start = boosting.resume()  # the newest checkpoint, a former model, or nothing
        for progress in boosting.rounds(start):  # segment after segment, scored and logged; objective=… is your own
            boosting.save_checkpoint(progress)
        boosting.save(progress)  # the model of the best round, its card, importance and learning curves


if __name__ == "__main__":
    main()
