"""The session of a script that trains with scikit-learn: a forest in groups of trees, or another estimator."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any

import trainbox
from trainbox import toolkit
from trainbox.comm import Communicator
from trainbox.contract.cluster.world import world_hosts
from trainbox.errors import RunError
from trainbox.model.plots import Picture, draw_pictures
from trainbox.sklearn.boosted import boost, describe_engine, save_booster, score_booster
from trainbox.sklearn.data import EstimatorData, read_data
from trainbox.sklearn.estimators import find_source, fit_estimator, make_estimator, score_estimator
from trainbox.sklearn.forests.checkpoints import identify, open_store, resume, save_parts
from trainbox.sklearn.forests.former import read_former, refuse_former
from trainbox.sklearn.forests.growing import check_rows, exchange_progress, groups_left, grow, order_by_columns, slices
from trainbox.sklearn.forests.parts import ForestPart, assemble_forest, gather_parts
from trainbox.sklearn.forests.scorer import ForestScorer
from trainbox.sklearn.model import describe, find_importance, save_curves, save_importance, save_model
from trainbox.sklearn.params import EstimatorParams
from trainbox.tabular.channels import connect
from trainbox.tabular.script import RemainingTime, log_line

if TYPE_CHECKING:
    import xgboost as xgb


class ForestSession:
    """The part of this host in a job that trains with scikit-learn. Made by `session`.

    Args:
        params: The hyperparameters.
        stack: Closed at the end of the session.

    Raises:
        RunError: An estimator that is fitted on one host was requested on several.
        HyperparameterError: The job has a channel `model`, and what it trains cannot start from a model.
    """

    def __init__(self, params: EstimatorParams, stack: ExitStack) -> None:
        self._params, self._stack = params, stack
        self._pictures: list[Picture] = []
        if params.estimator is not None:
            _require_one_host(f"estimator={params.estimator}")
            refuse_former(f"estimator={params.estimator}")
        elif params.engine == "xgboost":
            refuse_former("engine=xgboost")
            log_line(describe_engine())

    @cached_property
    def _communicator(self) -> Communicator:
        """The connections to the other hosts, made on first use."""
        if toolkit.current_ranks().local_world_size > 1:
            raise RunError(
                "scikit-learn trains in one process on each host", hint="leave processes_per_host out; see n_jobs"
            )
        return self._stack.enter_context(connect())

    def read(self) -> EstimatorData:
        """Connect to the other hosts of the job, read the channels, and check that the rows of all hosts match.

        Reads `train`, and `validation`, or else `test`. Each host gets all rows: sharded ones are gathered.

        Raises:
            DataError: A channel cannot be read, the rows of the hosts do not match, or one host cannot hold them.
            PeerError: Another host did not connect, or is lost; the message names it.
        """
        return read_data(self._params, self._communicator)

    def grow(self, data: EstimatorData) -> "Growth":
        """Prepare a forest that continues from the newest checkpoint, or from the model of the channel `model`.

        Args:
            data: The rows; they cannot be used afterwards.

        Raises:
            DataError: The forest cannot be grown from these rows.
            CheckpointError: The checkpoint is of another forest; the message lists every difference.
            HyperparameterError: The checkpoint has more trees than `n-estimators`.
        """
        return Growth(self._params, data, self._communicator, stack=self._stack, pictures=self._pictures)

    def make_estimator(self) -> Any:  # noqa: ANN401 - any estimator
        """Make the estimator that the hyperparameter `estimator` names.

        Raises:
            HyperparameterError: There is no such estimator, it does not fit the task, or an argument is wrong.
        """
        return make_estimator(self._params, find_source(trainbox.current_job()))

    def fit(self, model: Any, data: EstimatorData) -> dict[str, float]:  # noqa: ANN401 - any estimator
        """Fit an estimator or a pipeline on `train`, and score it on `validation`, or else on `train`.

        Returns:
            The scores by the full names of the metrics.

        Raises:
            DataError: The estimator rejects the rows; the message has its own words.
            HyperparameterError: Rows have weights, and the estimator takes none.
            RunError: The job has several hosts.
        """
        _require_one_host(type(model).__name__)
        fit_estimator(model, self._params, data)
        return score_estimator(model, self._params, data)

    def save(self, model: Any, data: EstimatorData, scores: Mapping[str, float]) -> None:  # noqa: ANN401 - any estimator
        """Save a fitted estimator as `model.joblib` and `model.skops`, with its card and the feature importance.

        Raises:
            OSError: A file cannot be written.
        """
        kind = type(model)
        algorithm = self._params.estimator or f"{kind.__module__.partition('._')[0]}.{kind.__qualname__}"
        save_model(model, data, describe(self._params, data, algorithm=algorithm, metrics=scores))
        self._pictures += save_importance(*find_importance(model, data.features))

    def boost(self, data: EstimatorData) -> "xgb.Booster":
        """Train a random forest with XGBoost, each host on its own rows; every host returns the same booster.

        Raises:
            PeerError: Another host is lost; the message names it.
        """
        return boost(self._params, data, self._communicator)

    def save_booster(self, booster: "xgb.Booster", data: EstimatorData) -> dict[str, float]:
        """Score a booster and save it as `xgboost-model`, with its card; only the first host does.

        Returns:
            The scores by the full names of the metrics; empty on the other hosts.

        Raises:
            OSError: A file cannot be written.
        """
        if not self._communicator.members.is_first:
            return {}
        scores = score_booster(booster, self._params, data)
        self._pictures += save_booster(booster, self._params, data, scores)
        return scores

    def draw(self) -> None:
        """Draw the pictures of what was saved; the end of the session does, after the script has logged its metrics."""
        draw_pictures(*self._pictures)


class Growth:
    """A forest that grows while it is iterated, in groups of `checkpoint-every` trees. Made by `ForestSession.grow`.

    Each group is saved as a checkpoint. On the first host an iteration yields the number of trees so far and their
    scores; on the others it yields nothing. It ends with the last tree of all hosts, or after the current group if a
    host is stopped. On one host a script may also break out of the loop.

    >>> forest = run.grow(run.read())
    >>> for trees, scores in forest:
    ...     print(trees, scores["validation:accuracy"])
    >>> scores = forest.save()
    """

    def __init__(
        self,
        params: EstimatorParams,
        data: EstimatorData,
        communicator: Communicator,
        stack: ExitStack,
        pictures: list[Picture],
    ) -> None:
        check_rows(params, data)
        self._former = read_former(params, data, communicator)
        self._params, self._communicator, self._stack, self._pictures = params, communicator, stack, pictures
        self._own = slices(data.shares, params.n_estimators, self._former.trees)[communicator.rank]
        self._store, self._identity = open_store(communicator), identify(params, data, self._former)
        self._parts, self._history = resume(self._store, self._identity, self._own, params, data)
        self._data = order_by_columns(data)
        self._scorer = ForestScorer(params, self._data) if communicator.members.is_first else None
        if self._scorer:
            self._scorer.restore([*self._former.parts, *self._parts])
        self._gathered: Sequence[ForestPart] = ()

    def __iter__(self) -> Iterator[tuple[int, dict[str, float]]]:
        params, communicator, parts = self._params, self._communicator, self._parts
        # Until the end of the session: waiting for the trees that are growing at a stop must not delay saving.
        groups = groups_left(self._own, parts, params.checkpoint_every)
        growing = self._stack.enter_context(grow(params, self._data, groups))
        stock = exchange_progress(communicator, self._own, parts, stop=trainbox.stop_requested())
        remaining = RemainingTime(params.n_estimators - self._former.trees, stock.grown, "trees")
        while stock.left and not stock.stop:
            for part in itertools.islice(growing, 1):  # none where other hosts still grow, and this one is done
                parts.append(part)
                yield from self._score(part)
                save_parts(self._store, parts, self._identity, self._history)
            stock = exchange_progress(communicator, self._own, parts, stop=trainbox.stop_requested())
            remaining.update(stock.grown)
        self._gathered = gather_parts(communicator, parts, params, self._data)
        for part in self._gathered[len(parts) :]:
            yield from self._score(part)

    def _score(self, part: ForestPart) -> Iterator[tuple[int, dict[str, float]]]:
        for result in self._scorer.add_part(part) if self._scorer else ():
            self._history.append(result)
            yield result

    def save(self) -> dict[str, float]:
        """Save the forest as `model.joblib` and `model.skops`, with its card, importance and learning curves.

        Returns:
            The scores by the full names of the metrics; empty on other hosts than the first, and without any tree.

        Raises:
            OSError: A file cannot be written.
        """
        if self._scorer is None:
            return {}
        if not self._gathered and self._communicator.size == 1:  # the script has left its loop
            self._gathered = self._parts
        if not self._gathered:
            log_line("asked to stop before the first tree: there is no model to save")
            return {}
        params, data, scores = self._params, self._data, self._scorer.scores()
        forest = assemble_forest(self._gathered, params, self._former.parts)
        trees, wanted = len(forest.estimators_), params.n_estimators
        if trees < wanted:
            log_line(f"asked to stop after {trees} of {wanted} trees: saved so far; a resumed job goes on from there")
        about = {"algorithm": type(forest).__name__, "complete": trees == wanted, "iterations": trees}
        save_model(forest, data, describe(params, data, metrics=scores, **about))
        pictures = [*save_importance(*find_importance(forest, data.features)), save_curves(self._history)]
        if trees == wanted:
            self._pictures += pictures
        return scores


def _require_one_host(what: str) -> None:
    """Check that the job has one host.

    Raises:
        RunError: It has several.
    """
    if len(world_hosts(trainbox.current_job())) > 1:
        raise RunError(f"{what} is fitted on one host", hint="ask for one instance")
