"""The session of a script that trains with XGBoost: read, resume, train segment by segment, save."""

from collections.abc import Iterator
from contextlib import ExitStack

import trainbox
from trainbox.checkpoint.store import Checkpoint
from trainbox.comm import Communicator
from trainbox.errors import RunError
from trainbox.model.plots import draw_pictures
from trainbox.tabular.channels import connect
from trainbox.tabular.script import log_line
from trainbox.tabular.texts import note_on_texts
from trainbox.xgboost.collective.group import collective
from trainbox.xgboost.cross_validation import cross_validate
from trainbox.xgboost.former import FormerBooster, read_former
from trainbox.xgboost.model import describe, first_rounds, save_curves, save_importance, save_models, thin_rows
from trainbox.xgboost.params.hyperparameters import XGBoostParams, check_members, objective_of
from trainbox.xgboost.rows.reading import BoostingData, read_data
from trainbox.xgboost.segments import (
    Progress,
    best_round,
    chosen_round,
    identify,
    is_finished,
    resume,
    save_progress,
)
from trainbox.xgboost.training import CustomObjective, log_final, train


class BoostingSession:
    """The part of this process in a job that trains with XGBoost. Made by `session`.

    Args:
        params: The hyperparameters.
        stack: Closed at the end of the session.
    """

    def __init__(self, params: XGBoostParams, stack: ExitStack) -> None:
        self._params = params
        self._stack = stack

    def read(self) -> "Boosting":
        """Connect to the other processes of the job, read the channels, and check that all rows match. Call it once.

        Reads `train`, and `validation`, or else `test`. On several hosts, or several GPUs, each process reads its own
        rows.

        Raises:
            DataError: A channel cannot be read, or the rows of the processes do not fit together.
            PeerError: Another process did not connect, or is lost; the message names it.
            RunError: Cross-validation was requested on several processes.
            CheckpointError: A checkpoint cannot be read.
        """
        params, store = self._params, trainbox.checkpoints()
        communicator = self._stack.enter_context(connect())
        check_members(params, communicator.size)
        found = store.latest() if not params.kfold else None
        data = read_data(params, communicator, self._stack, checkpoint=found.step if found else None)
        if params.kfold and communicator.size > 1:
            raise RunError("cross-validation trains in one process", hint="one instance, and no processes_per_host")
        former = read_former(params, data.agreement, communicator)
        if params.kfold:
            found = store.latest()
        return Boosting(params, communicator, data, store=store, found=found, former=former)


class Boosting:
    """The rows of a job, and the training on them: one model, or one for each fold. Made by `BoostingSession.read`.

    Attributes:
        rank: The rank of this process; only rank 0 saves.
    """

    def __init__(
        self,
        params: XGBoostParams,
        communicator: Communicator,
        data: BoostingData,
        *,
        store: trainbox.Checkpoints,
        found: Checkpoint | None,
        former: FormerBooster | None,
    ) -> None:
        self.rank, self._data = communicator.rank, data
        self._params, self._communicator = params, communicator
        self._store, self._found, self._former = store, found, former
        self._bins = data.bins(params, found)
        self._identity = identify(params, data.agreement, self._bins, former)
        # Kept now: training frees the rows.
        self._thin = thin_rows(data.shards["train"]) if communicator.members.is_first else None

    def resume(self) -> Progress:
        """Load the newest checkpoint, or else the model of the channel `model`; without either, start at round 0.

        Raises:
            CheckpointError: The checkpoint is of another job; the difference is shown.
            HyperparameterError: The checkpoint has more rounds than `num_round`.
        """
        agreement = self._data.agreement
        return resume(self._found, agreement, self._communicator, self._identity, self._params, former=self._former)

    def rounds(self, start: Progress, *, objective: CustomObjective | None = None) -> Iterator[Progress]:
        """Train, and yield the progress after each segment of `checkpoint_every` rounds. Call it once.

        Every round is scored and logged. Training ends after `num_round` rounds, by early stopping, or after a SIGTERM;
        all processes end after the same round, so the last segment may be shorter.

        Args:
            start: What `resume` returned.
            objective: A custom objective, as `obj` of `xgboost.train`: from raw predictions and the matrix to gradients
                and Hessians. The hyperparameter `objective` still decides how predictions are transformed. A resumed
                job must use the same one.

        Raises:
            PeerError: Another process is lost; the message names it.
            TrainingError: Early stopping found no finite value of its metric.
        """
        with collective(self._communicator) as group:
            yield from train(self._params, group, self._data, start, self._bins, objective=objective)

    def save_checkpoint(self, progress: Progress) -> None:
        """Write a checkpoint if the segment is complete; only rank 0 writes.

        Raises:
            CheckpointError: It cannot be written.
        """
        if self.rank == 0 and len(progress.history) % self._params.checkpoint_every == 0:
            save_progress(self._store, self._identity, progress)

    def save(self, progress: Progress) -> None:
        """Save the model and its card, then log its scores once more; only rank 0 does.

        With early stopping it is the model of the best round. `output/data` gets the learning curves and the feature
        importance. Nothing is saved if the job was stopped before the first round.

        Raises:
            OSError: A file cannot be written.
        """
        if self._thin is None:
            return
        params, data = self._params, self._data
        history, metric = progress.history, objective_of(params)
        if progress.model is None or not history:
            log_line("asked to stop before the first round: there is no model to save")
            return
        complete = is_finished(history, metric, params)
        if not complete:
            lost = len(history) % params.checkpoint_every
            log_line(f"asked to stop: {len(history)} rounds are saved; a resumed job repeats the last {lost} of them")
        chosen, best = chosen_round(history, metric, params), best_round(history, metric)
        rounds = progress.former + chosen + 1
        model, features = first_rounds(progress.model, rounds), data.agreement.columns
        scores = {**history[chosen], **(progress.scores if chosen == len(history) - 1 else {})}
        card = describe(
            params,
            features,
            coding=data.agreement.coding,
            complete=complete,
            iterations=rounds,
            best_iteration=None if best is None else progress.former + best,
            metrics=scores,
        )
        save_models({"xgboost-model": bytes(model.save_raw("ubj"))}, card, self._thin)
        pictures = save_importance(model, features), save_curves(history, chosen)
        log_line(f"saved {rounds} rounds to {trainbox.model_dir() / 'xgboost-model'}")
        for text in note_on_texts(data.agreement.coding, features, params.unseen):
            log_line(text)
        log_final(params, chosen, scores)
        if complete:
            draw_pictures(*pictures)

    def cross_validate(self) -> None:
        """Train and save a model for each of the `_kfold` folds, scored on the rows of that fold.

        Each finished fold is a checkpoint; a resumed job continues with the next fold.

        Raises:
            CheckpointError: The checkpoint is of another job; the difference is shown.
        """
        if self._thin is not None:
            cross_validate(
                self._params,
                self._data,
                store=self._store,
                found=self._found,
                identity=self._identity,
                bins=self._bins,
                thin=self._thin,
            )
