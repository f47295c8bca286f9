"""What a person wants to know of a model before it is served: read from its card and its files, nothing is run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec

from trainbox.contract.model_card import CARD_FILE, ModelCard, read_card
from trainbox.contract.text import six_digits, some
from trainbox.errors import DataError, RunError
from trainbox.files import read_below, walk_below
from trainbox.local.endpoints.sample_request import make_request

#: What the serving toolkits call, and so does `serve`.
HOOKS = (
    "model_fn",
    "input_fn",
    "predict_fn",
    "output_fn",
    "transform_fn",
    "pre_model_fn",
    "model_warmup_fn",
    "execution_parameters_fn",
)
_PROGRAMS = ("code/inference.py", "inference.py")
#: Loading one of these runs what whoever made it has put in.
_PICKLES = (".joblib", ".pkl", ".pickle", ".pt", ".pth")
_MOST_BYTES = 2**20
_SHOWN_FEATURES = 20
_LONGEST_ROW = 200


class ModelSummary(msgspec.Struct, frozen=True):
    """A model, as far as its files say."""

    #: None where another program has trained it.
    card: ModelCard | None
    #: Below its directory, with their sizes.
    files: tuple[tuple[str, int], ...]
    #: The user's own program, and the hooks it has.
    program: str
    hooks: tuple[str, ...]

    @property
    def pickles(self) -> tuple[str, ...]:
        """The files that run code when they are loaded; what is loaded in place of one (skops) counts."""
        names = [name for name, _ in self.files]
        return tuple(name for name in names if name.endswith(_PICKLES) and f"{Path(name).stem}.skops" not in names)


def summarise_model(model_dir: Path) -> ModelSummary:
    """Read what the files of a model say.

    Raises:
        RunError: It cannot be read.
        DataError: Its card is damaged, or its program is no Python.
    """
    try:
        found = [
            (str(path.relative_to(model_dir)), status.st_size)
            for path, status in walk_below(model_dir)
            if not path.is_dir()
        ]
    except OSError as error:
        raise RunError(f"{model_dir} cannot be read: {error.strerror}") from error
    names = {name for name, _ in found}
    card = read_card(model_dir) if CARD_FILE in names or "model.json" in names else None
    program = next((name for name in _PROGRAMS if name in names), "")
    return ModelSummary(card, tuple(sorted(found)), program, _find_hooks(model_dir, program) if program else ())


def _find_hooks(model_dir: Path, program: str) -> tuple[str, ...]:
    try:
        tree = ast.parse(read_below(model_dir, program, _MOST_BYTES))
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise DataError(f"{program} cannot be read: {error}") from error
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    defined = {node.name for node in tree.body if isinstance(node, functions)}
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    return tuple(hook for hook in HOOKS if hook in defined | imported)


def as_rows(summary: ModelSummary) -> Iterator[tuple[str, str]]:
    """Return what there is to show, each with its name."""
    card = summary.card
    if card is None:
        yield "model", f"no {CARD_FILE}: another program has trained it"
    else:
        yield from _rows_of_card(card)
    if summary.program:
        yield "hooks", f"{', '.join(summary.hooks) or 'none'} ({summary.program})"
    code = [*summary.pickles, *filter(None, (summary.program,))]
    yield "runs code", f"{some(code)}: serve it only if you trust who made it" if code else "no"
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
    yield (
        "metrics",
        ", ".join(f"{name}={six_digits(value)}" for name, value in card.metrics.items() if value is not None),
    )
    yield "versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())


def feature_rows(card: ModelCard) -> list[tuple[str, ...]]:
    """Return each feature with its type, its categories and its value in the sample row."""
    sample = card.samples[0].values if card.samples else {}
    rows: list[tuple[str, ...]] = []
    for number, name in enumerate(card.features.listed()[:_SHOWN_FEATURES], start=1):
        kind = card.features.types.get(name, "number")
        rows.append((f"{number}", name, kind, some(card.categories.get(name, ())) or _shown(sample.get(name))))
    return rows


def _shown(value: float | str | None) -> str:
    return value if isinstance(value, str) else "" if value is None else f"for example {six_digits(value)}"
