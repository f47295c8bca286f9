"""A random forest with scikit-learn, from the channel `train` to `model.joblib` and `model.skops`.

    trainbox run random_forest --channel train=DIR --channel validation=DIR --hp n-estimators=200 --hp max-depth=15
    python train_scripts/random_forest_train.py --n-estimators 200 --channel train=DIR --channel validation=DIR
    docker run -e TRAINBOX_SCRIPT=random_forest -v TREE:/opt/ml IMAGE train

Channels: `train`, and `validation` or `test`: CSV, Parquet, libsvm or recordio-protobuf, the label first; whole numbers
are the classes where `task` is classification. Metrics are called `validation:…` whichever of the two channels there
is, and `train:…` where there is neither.

Trees grow in groups of `checkpoint-every`, each followed by metrics and a checkpoint. A tree depends on `seed`, its
number and the rows alone: a resumed forest, one grown on more threads and one grown on several hosts are the same tree
by tree. On several hosts each grows some of the trees from all rows, and the first puts them together; rows that are
sharded are gathered first. A stop waits for the end of its group.

`estimator=sklearn.linear_model.LogisticRegression` trains that one instead, on the same rows, with the same metrics.
`engine=xgboost` grows a forest of another kind, faster. `model.joblib` is a pickle: load none that others wrote.
"""

import gc
import itertools
import sys

import trainbox

if __name__ == "__main__":
    trainbox.stop_requested()  # from here on a stop is heard: the imports below take seconds

import numpy as np

from trainbox.errors import RunError, Stopped
from trainbox.peers import Communicator
from trainbox.tabular.lean import put_off, unlisted, without
from trainbox.tabular.pace import Pace

# Half of the time of this import: scikit-learn takes three functions from all of `scipy.stats`, which no tree needs,
# draws progress with rich, and looks for pandas again where it is needed.
with without("pandas", "rich"), put_off("scipy.stats", "rankdata", "gmean", "chi2"), unlisted(np, "f2py", "testing"):
    from trainbox.sklearn import (
        Data,
        Forest,
        History,
        Judge,
        Params,
        Part,
        assemble,
        boost,
        check_rows,
        declare,
        describe,
        draw_pictures,
        explain_boost,
        find_importance,
        find_source,
        fit_estimator,
        gather_parts,
        groups_left,
        grow,
        identify,
        lay_out,
        make_estimator,
        meet,
        open_store,
        read_data,
        read_former,
        refuse_former,
        resume,
        save_booster,
        save_curves,
        save_importance,
        save_model,
        save_parts,
        score_booster,
        score_estimator,
        slices,
        take_stock,
    )


def metrics(params: Params) -> tuple[trainbox.Metric, ...]:
    """What this script logs: `trainbox metrics random_forest` prints it for SageMaker."""
    return declare(params)


def main() -> None:
    """Meet the other hosts, if there are any, and train what is asked for."""
    params = trainbox.hyperparameters(Params)
    with meet() as circle:
        if params.estimator is not None:
            train_estimator(params, circle)
        elif params.engine == "xgboost":
            train_boosted(params, circle)
        else:
            train_forest(params, circle)


def train_forest(params: Params, circle: Communicator) -> None:
    """Read, resume, grow this host's trees group by group; the first host gathers all of them, and saves."""
    data = read_data(params, circle)
    check_rows(params, data)
    former = read_former(params, data, circle)
    own = slices(data.shares, params.n_estimators, former.trees)[circle.rank]
    store, identity = open_store(circle), identify(params, data, former)
    parts, history = resume(store, identity, own, params, data)
    data = lay_out(data)
    judge = Judge(params, data) if circle.members.is_first else None  # the first host judges and saves
    if judge:
        judge.recall([*former.parts, *parts])

    with grow(params, data, groups_left(own, parts, params.checkpoint_every)) as growing:
        stock = take_stock(circle, own, parts, stop=trainbox.stop_requested())
        pace = Pace(params.n_estimators - former.trees, stock.grown, "trees")
        while stock.left and not stock.stop:
            for part in itertools.islice(growing, 1):  # none where other hosts still grow, and this one is done
                parts.append(part)
                if judge:
                    history += hear(judge, part, params)
                save_parts(store, parts, identity, history)
            stock = take_stock(circle, own, parts, stop=trainbox.stop_requested())
            pace.tell(stock.grown)

        gathered = gather_parts(circle, parts, params, data)
        if judge and gathered:
            for part in gathered[len(parts) :]:
                history += hear(judge, part, params)
            forest = assemble(gathered, params, former.parts)
            complete = save_forest(forest, judge.scores(), params, data)
            pictures = [*save_importance(*find_importance(forest, data.features)), save_curves(history)]
            trainbox.final(declared(params, judge.scores()))
            if complete:
                draw_pictures(*pictures)
        elif judge:
            say("asked to stop before the first tree: there is no model to save")


def hear(judge: Judge, part: Part, params: Params) -> History:
    """Log the scores of all trees so far after each group."""
    told = list(judge.hear(part))
    for step, scores in told:
        trainbox.log(step, declared(params, scores))
    return told


def save_forest(forest: Forest, scores: dict[str, float], params: Params, data: Data) -> bool:
    """Save the model; returns whether it has all its trees."""
    trees, wanted = len(forest.estimators_), params.n_estimators
    complete = trees == wanted
    if not complete:
        say(f"asked to stop after {trees} of {wanted} trees: saved so far; a resumed job goes on from there")
    card = describe(params, data, algorithm=type(forest).__name__, complete=complete, iterations=trees, metrics=scores)
    save_model(forest, data, card)
    return complete


def train_estimator(params: Params, circle: Communicator) -> None:
    """Fit another estimator on the same rows, judge it by the same metrics, save it in the same way."""
    if circle.size > 1:
        raise RunError(f"estimator={params.estimator} is fitted on one host", hint="ask for one instance")
    refuse_former(f"estimator={params.estimator}")
    estimator = make_estimator(params, find_source(trainbox.current_job()))
    data = read_data(params, circle)
    fit_estimator(estimator, params, data)
    scores = score_estimator(estimator, params, data)
    save_model(estimator, data, describe(params, data, algorithm=params.estimator, metrics=scores))
    pictures = save_importance(*find_importance(estimator, data.features))
    trainbox.final(declared(params, scores))
    draw_pictures(*pictures)


def train_boosted(params: Params, circle: Communicator) -> None:
    """Grow XGBoost's kind of forest, all hosts together, each from its own rows; the first judges and saves it."""
    refuse_former("engine=xgboost")
    say(explain_boost())
    data = read_data(params, circle)
    booster = boost(params, data, circle)
    if circle.members.is_first:
        scores = score_booster(booster, params, data)
        pictures = save_booster(booster, params, data, scores)
        trainbox.final(declared(params, scores))
        draw_pictures(*pictures)


def declared(params: Params, scores: dict[str, float]) -> dict[trainbox.Metric, float]:
    """The scores by the metrics that they are values of."""
    known = {metric.name: metric for metric in metrics(params)}
    return {known[name]: score for name, score in scores.items()}


def say(text: str) -> None:
    """Tell the reader of the log about a choice."""
    print(f"random_forest_train: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except Stopped as stop:
        if not trainbox.stop_requested():  # another host was stopped, and this one may never be
            raise
        say(f"{stop.message}: there is nothing to save; a resumed job starts from its last checkpoint")
    gc.freeze()  # what is left goes with the process; to look through it for garbage first takes half a second
