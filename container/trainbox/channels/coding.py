"""Texts as numbers: of each column of texts its categories, in the order of which each has a code.

The codes are those of the sorted texts, over all rows of all hosts: so they do not depend on the order of the rows, and
are the same everywhere.
"""

import hashlib
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: A column of more different texts has names, or sentences, but no categories.
MOST_CATEGORIES = 10_000
#: Of a text, in bytes: what members of a job tell each other at a time has a limit.
LONGEST_TEXT = 1_000


class Coding(msgspec.Struct, frozen=True):
    """Which columns hold texts, and their texts: the code of one is its place among those of its column."""

    #: By the place of the feature.
    features: Mapping[int, tuple[str, ...]] = {}
    #: The classes where labels are texts.
    labels: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.features or self.labels)


def sort_coding(coding: Coding) -> Coding:
    """The same texts in the order of their letters (Unicode code points)."""
    return unite([coding])


def unite(codings: Sequence[Coding]) -> Coding:
    """The texts of all, each once, sorted."""
    places = sorted({place for coding in codings for place in coding.features})
    return Coding(
        {place: _together([coding.features.get(place, ()) for coding in codings]) for place in places},
        _together([coding.labels for coding in codings]),
    )


def digest_coding(coding: Coding) -> str:
    """A BLAKE2b of all texts and their order, 16 hex digits."""
    content = msgspec.json.encode([sorted(coding.features.items()), coding.labels])
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _together(texts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(sorted({text for part in texts for text in part}))


def recode(codes: Floats, old: Sequence[str], new: Sequence[str]) -> None:
    """Give each code its place in another order, in place; a missing one stays so.

    Args:
        codes: Places in `old`, or NaN.
        old: The texts.
        new: The same ones, and perhaps others.
    """
    if tuple(old) == tuple(new[: len(old)]):
        return
    places = {text: place for place, text in enumerate(new)}
    moved = np.array([places[text] for text in old], np.float32)
    known = ~np.isnan(codes)
    codes[known] = moved[codes[known].astype(np.int64)]
