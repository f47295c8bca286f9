"""The model card: what one must know to use a model. Training writes it, serving starts from it.

It lies in a directory of its own below the model: SageMaker's XGBoost containers load every regular file that lies
beside `xgboost-model` as a model, and skip directories (https://github.com/aws/sagemaker-xgboost-container/issues/361).
"""

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from trainbox import files
from trainbox.contract.model_file import unreadable
from trainbox.errors import DataError

#: Below the model's directory.
CARD_FILE = "trainbox/model.json"
#: Where versions before the card left their description, in three shapes.
_OLD_FILE = "model.json"
#: Markers of missing values that pandas, R, databases and spreadsheets write into CSV.
MISSING = ("", "NA", "N/A", "n/a", "<NA>", "#N/A", "NULL", "null", "None", "NaN", "nan")
_MOST_BYTES = 256 * 2**20
_ABSENT = (errno.ENOENT, errno.ENOTDIR)

Framework: TypeAlias = Literal["xgboost", "scikit-learn", "pytorch", "onnx"]
#: `code` is a category that the data has as a number, `text` one that the card has the texts of.
FeatureType: TypeAlias = Literal["number", "code", "text"]
#: What a model says of one row: a number, a class, or a number for each of its outputs; null is not finite.
Prediction: TypeAlias = float | str | tuple[float | None, ...] | None


class Features(msgspec.Struct, frozen=True):
    """The columns that a model reads, in their order."""

    count: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    #: Empty where no file has named them: they are `f0`, `f1`, … then, and a model may have a million.
    names: tuple[str, ...] = ()
    #: Of those that are not numbers.
    types: Mapping[str, FeatureType] = {}

    def __post_init__(self) -> None:
        if self.names and len(self.names) != self.count:
            raise ValueError(f"{len(self.names):,} names for {self.count:,} features")

    def listed(self) -> tuple[str, ...]:
        """Return the name of each feature."""
        return self.names or tuple(f"f{place}" for place in range(self.count))

    def place(self, name: str) -> int | None:
        """Return where a feature is; None where there is none of this name."""
        if self.names:
            return self.names.index(name) if name in self.names else None
        digits = name.removeprefix("f")
        known = name == f"f{digits}" and digits.isdecimal() and digits.isascii() and str(int(digits[:10])) == digits
        return int(digits) if known and int(digits) < self.count else None

    def coded(self) -> frozenset[int]:
        """Return the places of the features that are no numbers; a model is given a code for each."""
        return frozenset(place for name in self.types if (place := self.place(name)) is not None)


class SampleRow(msgspec.Struct, frozen=True):
    """A row made up from quantiles and categories, which nobody has sent, and what the saved model says of it."""

    #: By feature, a category of text as its text; of an image for each channel (`f0`, …) what all its pixels have.
    #: A feature that is not named is what the card's `absent` says.
    values: Mapping[str, float | str]
    prediction: Prediction


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a model: its input, its output, how it was trained, and its files."""

    framework: Framework
    #: `xgboost`, or the class, network or factory that was trained.
    algorithm: str
    #: What was learnt: an objective of XGBoost, else `classification` or `regression`.
    objective: str
    features: Features
    #: The shape of one input of a network: (features,), or (channels, height, width).
    shape: tuple[int, ...] = ()
    #: The labels in the order of the model's outputs, as the data has them; empty where a number is predicted.
    classes: tuple[int | str, ...] = ()
    #: Of each text feature its texts: the place of a text is the number that the model is given for it.
    categories: Mapping[str, tuple[str, ...]] = {}
    #: What becomes of a text that is not among them.
    unseen: Literal["error", "missing"] = "error"
    #: What stands for a missing value in CSV; nothing where the reader's own defaults apply.
    missing: tuple[str, ...] = ()
    #: What separates the columns of CSV; found out where it is not given.
    delimiter: str | None = None
    #: What a feature is that a sparse row does not name.
    absent: Literal["missing", "zero"] = "missing"
    #: Whether training reached its end, and was not stopped before.
    complete: bool = True
    #: The rounds, trees or epochs that the model has.
    iterations: int | None = None
    #: The one with the best objective, counted from 0.
    best_iteration: int | None = None
    #: Of the saved model; of several folds the means. Null is what was not a number.
    metrics: Mapping[str, float | None] = {}
    #: Of cross-validation: the standard deviation of each metric over the folds, and the metrics of each fold.
    deviations: Mapping[str, float | None] = {}
    folds: tuple[Mapping[str, float | None], ...] = ()
    hyperparameters: Mapping[str, Any] = {}
    versions: Mapping[str, str] = {}
    #: SHA-256 of each file of the model, by its name below the model's directory.
    files: Mapping[str, str] = {}
    #: The types that skops must be told to trust to load `model.skops`.
    trusted: tuple[str, ...] = ()
    samples: tuple[SampleRow, ...] = ()
    #: What is particular to the algorithm.
    details: Mapping[str, Any] = {}

    def __post_init__(self) -> None:
        strangers = [name for name in {**self.categories, **self.features.types} if self.features.place(name) is None]
        if strangers:
            raise ValueError(f"there is no feature {strangers[0]!r}")


def features_of(names: Sequence[str], types: Mapping[str, FeatureType] | None = None) -> Features:
    """Return the features of these names; names that no file has given are left out."""
    found = Features(len(names), types=types or {})
    return found if found.listed() == tuple(names) else Features(len(names), tuple(names), types or {})


def encode_card(card: ModelCard) -> bytes:
    """Return the content of `CARD_FILE`; a number that JSON does not have becomes null."""
    return msgspec.json.format(msgspec.json.encode(card), indent=1)


def read_card(model_dir: Path) -> ModelCard:
    """Read the model card of a model, or the description that earlier versions wrote.

    Args:
        model_dir: What `model.tar.gz` was unpacked to; it may be somebody else's.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    for place, parse in ((CARD_FILE, _parse), (_OLD_FILE, _parse_old)):
        try:
            content = files.read_below(model_dir, place, _MOST_BYTES + 1)
        except OSError as error:
            if error.errno in _ABSENT:
                continue
            raise unreadable(model_dir / place, error) from error
        if len(content) > _MOST_BYTES:
            raise DataError(f"{model_dir / place} has more than {_MOST_BYTES:,} bytes", hint=_hint(place))
        try:
            return parse(content)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise DataError(f"{model_dir / place} is no model card: {error}", hint=_hint(place)) from error
    raise DataError(f"{model_dir} has no {CARD_FILE}", hint="give the directory of a model that trainbox has trained")


def _hint(place: str) -> str:
    return f"take {place} from the model.tar.gz of the training job"


def _parse(content: bytes) -> ModelCard:
    return msgspec.json.decode(content, type=ModelCard)


class _Given(msgspec.Struct, frozen=True):
    """What a description says of its hyperparameters, as far as a card has it elsewhere."""

    objective: str | None = None
    task: str | None = None
    num_class: Annotated[int, msgspec.Meta(ge=0, le=2**20)] | None = None
    missing: tuple[str, ...] = ()
    delimiter: str | None = None


class _Skops(msgspec.Struct, frozen=True):
    trusted: tuple[str, ...] = ()


class _Description(msgspec.Struct, frozen=True):
    """What was written before the card: the common part of three shapes, and what each had more."""

    algorithm: str
    complete: bool
    versions: Mapping[str, str]
    hyperparameters: Mapping[str, Any]
    #: Numbers; of cross-validation `mean` and `std`.
    metrics: Mapping[str, float | Mapping[str, float | None] | None]
    features: tuple[str, ...] = ()
    classes: tuple[int | str, ...] = ()
    rounds: int | None = None
    trees: int | None = None
    epoch: int | None = None
    best_iteration: int | None = None
    folds: tuple[Mapping[str, float | None], ...] = ()
    skops: _Skops = _Skops()
    inputs: tuple[int, ...] = ()
    parameters: int | None = None
    statistics: Mapping[str, Any] = {}


def _parse_old(content: bytes) -> ModelCard:
    old = msgspec.json.decode(content, type=_Description)
    given = msgspec.convert(old.hyperparameters, _Given)
    counted = next((count for count in (old.rounds, old.trees) if count is not None), None)
    means, deviations = _split_metrics(old.metrics)
    return ModelCard(
        framework=_framework(old),
        algorithm=old.algorithm,
        objective=given.objective or given.task or "",
        features=features_of(old.features),
        shape=old.inputs,
        classes=old.classes or classes_of(given.objective or "", given.num_class),
        missing=given.missing,
        delimiter=given.delimiter,
        complete=old.complete,
        iterations=counted if old.epoch is None else old.epoch + 1,
        best_iteration=old.best_iteration if old.epoch is None else old.epoch,
        metrics=means,
        deviations=deviations,
        folds=old.folds,
        hyperparameters=old.hyperparameters,
        versions=old.versions,
        trusted=old.skops.trusted,
        details={"parameters": old.parameters, "statistics": old.statistics} if old.parameters is not None else {},
    )


def _framework(old: _Description) -> Framework:
    if "torch" in old.versions:
        return "pytorch"
    return "xgboost" if old.algorithm == "xgboost" else "scikit-learn"


def _split_metrics(
    metrics: Mapping[str, float | Mapping[str, float | None] | None],
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    means: dict[str, float | None] = {}
    deviations: dict[str, float | None] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            means[name], deviations[name] = value.get("mean"), value.get("std")
        else:
            means[name] = value
    return means, deviations


def classes_of(objective: str, count: int | None) -> tuple[int, ...]:
    """Return the labels that an objective of XGBoost has outputs for: numbers from 0; none where it predicts a number.

    Args:
        objective: Its name.
        count: `num_class`, of the objectives that have it.
    """
    if objective.startswith("binary:"):
        return (0, 1)
    return tuple(range(count or 0)) if objective.startswith("multi:") else ()
