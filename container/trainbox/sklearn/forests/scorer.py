"""Score a forest on the first host while it grows, in the order of its trees."""

from collections.abc import Iterator, Sequence
from typing import Any

from trainbox.sklearn.data import EstimatorData, targets
from trainbox.sklearn.forests.growing import count_threads, make_sampler
from trainbox.sklearn.forests.parts import ForestPart
from trainbox.sklearn.params import OUT_OF_BAG, EstimatorParams
from trainbox.sklearn.scores import OutOfBag, Votes


class ForestScorer:
    """Scores a growing forest after each group of trees, on the first host.

    Args:
        params: The hyperparameters.
        data: The rows; those held out, or else those trained on, judge.
    """

    def __init__(self, params: EstimatorParams, data: EstimatorData) -> None:
        table = data.train if data.held_out is None else data.held_out
        threads = count_threads(params)
        self._params, self._channel = params, data.scored_channel
        self._votes = Votes(table, targets(table, params), data.classes, threads)
        self._unseen = None
        if params.oob_score:
            labels = targets(data.train, params)
            self._unseen = OutOfBag(data.train, labels, data.classes, make_sampler(params, data), threads)
        #: How many trees were heard.
        self.count = 0
        self._last: tuple[int, dict[str, float]] = (0, {})

    def add_part(self, part: ForestPart) -> Iterator[tuple[int, dict[str, float]]]:
        """Add trees; yields the number of trees and the scores at the end of each group, and after the last tree.

        To be gone through to its end: what is not asked for is not heard.
        """
        rest, size = part.trees, self._params.checkpoint_every
        while rest:
            count = size - self.count % size
            group, rest = rest[:count], rest[count:]
            self._add(group)
            if self.count % size == 0 or self.count == self._params.n_estimators:
                yield self.count, self.scores()

    def restore(self, parts: Sequence[ForestPart]) -> None:
        """Add trees whose scores are known."""
        for part in parts:
            self._add(part.trees)

    def scores(self) -> dict[str, float]:
        """Return the metrics of all trees so far, at least one, by their full names."""
        if self._last[0] != self.count:
            found = {f"{self._channel}:{name}": score for name, score in self._votes.scores().items()}
            self._last = self.count, found | ({OUT_OF_BAG: self._unseen.score()} if self._unseen else {})
        return dict(self._last[1])

    def _add(self, trees: Sequence[Any]) -> None:
        self._votes.add(trees)
        if self._unseen:
            self._unseen.add(trees)
        self.count += len(trees)
