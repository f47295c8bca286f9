"""What a person wants to know of a model before it is served: read from its card and its files, nothing is run."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from trainbox.contract.hosting import read_hosting
from trainbox.contract.layout import ROOT_VARIABLE
from trainbox.contract.model_card import ModelCard
from trainbox.contract.text import six_digits, some
from trainbox.errors import DataError, ProgramError, RunError
from trainbox.files import walk_below
from trainbox.local.endpoints.sample_request import make_request
from trainbox.serving.models.find import CODE, FoundModel, find_model, list_model

_SHOWN_FEATURES = 20
_LONGEST_ROW = 200


class ModelSummary(msgspec.Struct, frozen=True):
    """A model, as far as its files say."""

    found: FoundModel
    #: Below its directory, with their sizes.
    files: tuple[tuple[str, int], ...]

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks of the user's own module."""
        return self.found.module.hooks if self.found.module else ()

    @property
    def code(self) -> tuple[str, ...]:
        """The files whose loading runs code of their author."""
        pickles = self.found.files if self.found.form in CODE else ()
        return (*pickles, *((self.program,) if self.program else ()))

    @property
    def program(self) -> str:
        """The user's own module, below the model's directory; empty where there is none."""
        module = self.found.module
        return str(module.path.relative_to(self.found.model_dir)) if module else ""


def summarise_model(root: Path, shown: Path) -> ModelSummary:
    """Read what the files of a model say, and which of them `serve` would load.

    Args:
        root: A tree with the model in `model`.
        shown: Where the person has it, for messages.

    Raises:
        RunError: It cannot be read.
        DataError: There is no model that can be served, or its card is damaged.
        ProgramError: The user's module cannot be used.
    """
    hosting = read_hosting({ROOT_VARIABLE: str(root)})
    model_dir = hosting.model_dir
    try:
        files = [(str(path.relative_to(model_dir)), status.st_size) for path, status in walk_below(model_dir)]
        found = find_model(hosting, list_model(hosting))
    except OSError as error:
        raise RunError(f"{shown} cannot be read: {error.strerror}") from error
    except (DataError, ProgramError) as error:
        message = error.message.replace(str(model_dir), str(shown))
        raise type(error)(message, hint=error.hint) from error
    return ModelSummary(found, tuple(sorted(each for each in files if not (model_dir / each[0]).is_dir())))


def as_rows(summary: ModelSummary) -> Iterator[tuple[str, str]]:
    """Return what there is to show, each with its name."""
    card = summary.found.card
    if card is None:
        yield "model", f"{summary.found.framework or 'of model_fn'}, trained by another program: it has no card"
    else:
        yield from _rows_of_card(card)
    if summary.hooks:
        yield "hooks", f"{', '.join(summary.hooks)} ({summary.program})"
    code = ", ".join(summary.code)
    yield "runs code", f"{code}: serve it only if you trust who made it" if code else "no"
    yield "loads", ", ".join(summary.found.files)
    yield "files", some([f"{name} ({size:,} bytes)" for name, size in summary.files], 10)


def _rows_of_card(card: ModelCard) -> Iterator[tuple[str, str]]:
    yield "model", f"{card.framework} {card.algorithm}, {card.objective}" + ("" if card.complete else ", not complete")
    yield "features", f"{card.features.count:,}" + (f" of shape {card.shape}" if len(card.shape) > 1 else "")
    yield "classes", some([str(each) for each in card.classes], 20)
    yield "missing values", ", ".join(map(repr, card.missing))
    request = make_request(card)
    if request is not None:
        said = msgspec.json.encode(card.samples[0].prediction).decode()
        yield "sample row", f"{request.body} -> {said}" if len(request.body) <= _LONGEST_ROW else f"it gives {said}"
    metrics = {name: value for name, value in card.metrics.items() if value is not None}
    yield "metrics", ", ".join(f"{name}={six_digits(value)}" for name, value in metrics.items())
    yield "versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())


def feature_rows(card: ModelCard) -> list[tuple[str, ...]]:
    """Return each feature with its type, and its categories or its value in the sample row."""
    sample = card.samples[0].values if card.samples else {}
    rows: list[tuple[str, ...]] = []
    for number, name in enumerate(card.features.listed()[:_SHOWN_FEATURES], start=1):
        kind = card.features.types.get(name, "number")
        rows.append((f"{number}", name, kind, some(card.categories.get(name, ())) or _example(sample.get(name))))
    return rows


def _example(value: float | str | None) -> str:
    return value if isinstance(value, str) else "" if value is None else f"for example {six_digits(value)}"
