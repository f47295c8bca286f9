"""Texts in rows as codes that are the same on all members, and log lines about them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import scipy.sparse

from trainbox.comm import Communicator
from trainbox.contract.model_card import CARD_FILE, read_card
from trainbox.contract.text import short, some
from trainbox.data import Coding, Table
from trainbox.data.formats.categories import MOST_CATEGORIES, merge_codings
from trainbox.data.formats.cell_types import hint_for_cell, is_missing_marker
from trainbox.errors import DataError

#: Stands for the label among the places of features.
LABEL = -1


class _FormerCodes(msgspec.Struct, frozen=True):
    coding: Coding | None


class TextColumn(msgspec.Struct, frozen=True):
    """One member's texts of a column that has texts on some member."""

    member: str
    texts: tuple[str, ...]
    has_numbers: bool


def share_codes(
    communicator: Communicator, coding: Coding, names: Sequence[str], has_numbers: Callable[[int], bool]
) -> Coding:
    """Return the codes of all members' texts, sorted; all members call this.

    Args:
        communicator: The members.
        coding: Of this one's rows.
        names: Of its features.
        has_numbers: Whether this one's column at a place, which is none of texts, has a number.

    Raises:
        DataError: A column has texts on one member and numbers on another, or too many texts on all together.
    """
    if communicator.size == 1:
        return merge_codings([coding])
    own = [*coding.features, *([LABEL] if coding.labels else [])]
    places = sorted({place for found_there in communicator.gather(own, list[int]) for place in found_there})
    found: dict[int, tuple[str, ...]] = {}
    for place in places:
        texts = coding.labels if place == LABEL else coding.features.get(place, ())
        column = TextColumn(communicator.members.name, texts, place not in own and has_numbers(place))
        what = "the label" if place == LABEL else f"feature {names[place] if place < len(names) else place!r}"
        found[place] = merge_texts(what, communicator.gather(column, TextColumn))
    return Coding({place: texts for place, texts in found.items() if place != LABEL}, found.get(LABEL, ()))


def former_codes(communicator: Communicator, model_dir: Path | None) -> Coding | None:
    """Return the codes of a former model, which the rows must use; None if no member has one.

    Args:
        communicator: The members; all call this.
        model_dir: Of the former model, where this member is given one.

    Raises:
        DataError: Its card cannot be read.
    """
    own = _FormerCodes(read_codes(model_dir) if model_dir is not None else None)
    codings = communicator.gather(own, _FormerCodes) if communicator.size > 1 else [own]
    return next((one.coding for one in codings if one.coding is not None), None)


def read_codes(model_dir: Path) -> Coding:
    """Read the codes of a model from its card; empty without a card.

    Raises:
        DataError: Its card cannot be read.
    """
    if not any((model_dir / name).exists() for name in (CARD_FILE, Path(CARD_FILE).name)):
        return Coding()
    card = read_card(model_dir)
    places = {name: place for place, name in enumerate(card.features.listed())} if card.categories else {}
    features = {places[name]: texts for name, texts in card.categories.items()}
    return Coding(features, tuple(label for label in card.classes if isinstance(label, str)))


def merge_texts(what: str, columns: Sequence[TextColumn]) -> tuple[str, ...]:
    """Merge the texts of a column of all members, sorted.

    Raises:
        DataError: It has texts on one member and numbers on another, or too many texts on all together.
    """
    texts = next((column for column in columns if column.texts), columns[0])
    numbers = next((column for column in columns if column.has_numbers), None)
    if numbers is not None:
        raise DataError(
            f"channel train: {what} has numbers on {numbers.member}, and texts such as"
            f" {short(next(iter(texts.texts), ''))} on {texts.member}",
            hint="write either numbers or texts; or name the column in the hyperparameter categorical, so that all are"
            " texts",
        )
    together = merge_codings([Coding(labels=column.texts) for column in columns]).labels
    if len(together) > MOST_CATEGORIES:
        raise DataError(
            f"channel train: {what} has {len(together):,} different texts on the {len(columns)} members together,"
            f" more than {MOST_CATEGORIES:,}",
            hint="leave the column out, or put its texts into fewer groups",
        )
    return together


def has_number(table: Table, place: int) -> bool:
    """Whether a column of numbers has a value that is not missing."""
    if not len(table.labels):
        return False
    if place == LABEL or scipy.sparse.issparse(table.features):
        return True
    return not bool(np.isnan(table.features[:, place]).all())


def texts_like_missing(coding: Coding, names: Sequence[str], missing: Sequence[str]) -> tuple[str, ...]:
    """Return a warning for each text that other programs write for a missing value."""
    columns = {**by_name(coding, names), **({"the label": coding.labels} if coding.labels else {})}
    found = {name: text for name, texts in columns.items() for text in texts if is_missing_marker(text)}
    return tuple(f"{name}: {text!r} is read as a text; {hint_for_cell(text, missing)}" for name, text in found.items())


def by_name(coding: Coding, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the texts of each feature by its name, as a model card has them.

    Raises:
        DataError: Two columns of texts have one name.
    """
    found: dict[str, tuple[str, ...]] = {}
    for place, texts in coding.features.items():
        if list(names).count(names[place]) > 1:
            raise DataError(
                f"channel train: several columns are called {names[place]!r}, and one of them holds texts",
                hint="give each column a name of its own",
            )
        found[names[place]] = texts
    return found


def note_on_texts(coding: Coding, names: Sequence[str], unseen: str) -> tuple[str, ...]:
    """Return the log line of a model that was trained on texts; none for other models."""
    if not coding:
        return ()
    listed = [f"{name} ({len(texts):,} texts)" for name, texts in by_name(coding, names).items()]
    what = some([*listed, *([f"the label ({len(coding.labels):,} texts)"] if coding.labels else [])])
    then = "is an error" if unseen == "error" else "counts as missing"
    text = (
        f"the model has learnt from the codes of texts: {what}. It needs trainbox's `serve`, which codes rows as"
        f" training did; a text that training has not seen {then} there"
    )
    return (text,)
