"""A model for tests of serving whose predictions one can compute in one's head, and requests to it."""

from typing import Any

import numpy as np

from trainbox.contract.hosting import Extras, read_hosting
from trainbox.contract.model_card import Features, ModelCard
from trainbox.serving.bodies.answer import Answer, Service, make_service, respond

NAMES = ("age", "pay", "size")


class Linear:
    """Adds up the features, each times its place from 1; what is missing counts as nothing. It keeps what it is given.

    Args:
        names: Of the features.
        outputs: How many numbers a row gets: the sum, 10 more, …; 0 is one number without a second dimension.
        about: Other fields of the card.
    """

    is_rowwise = True

    def __init__(self, *, names: tuple[str, ...] = NAMES, outputs: int = 0, **about: Any) -> None:
        fields = {"framework": "xgboost", "algorithm": "xgboost", "objective": "reg:squarederror"}
        self.card = ModelCard(**{**fields, "features": Features(len(names), names), **about})
        self.outputs = outputs
        self.given: list[Any] = []

    def predict(self, rows: Any) -> Any:
        self.given.append(rows)
        dense = rows.toarray() if hasattr(rows, "toarray") else rows.reshape(len(rows), -1)
        with np.errstate(over="ignore"):  # four times the largest number there is
            sums = (np.nan_to_num(dense) @ np.arange(1, 1 + dense.shape[1])).astype(np.float32)
        return sums[:, None] + 10 * np.arange(self.outputs, dtype=np.float32) if self.outputs else sums

    @property
    def extras(self) -> Extras:
        return {"contributions": self.contributions, "leaf": self.leaves}

    def leaves(self, rows: Any) -> Any:
        """Of two trees, the second of which asks nothing."""
        return np.column_stack([1 + (rows[:, 0] > 0), np.zeros(len(rows))]).astype(np.int32)

    def contributions(self, rows: Any) -> Any:
        return np.column_stack([np.nan_to_num(rows), np.ones(len(rows))]).astype(np.float32)

    def set_threads(self, count: int) -> None:
        """Nothing to do."""


def service(model: Linear | None = None, /, **env: str) -> Service:
    """The service of a model under these variables."""
    return make_service(read_hosting(env), model or Linear())


def ask(body: bytes, content_type: str = "text/csv", accept: str = "", *, model: Any = None, **env: str) -> Answer:
    """The answer to one request."""
    return respond(service(model, **env), body, content_type, accept, request_id="r1")
