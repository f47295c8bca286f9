"""What a model must be so that every XGBoost reads it alike: 1.7.6, 3.0.5, and those that train here.

The base score. XGBoost 3.1 and later write an array, `[2.03E-2]`. An earlier one, and with it SageMaker's built-in
hosting, loads that without an error, and predicts from 0.5. The number alone is read alike by all.

Ranking. XGBoost before 2.0 loads no model without the parameters of its own, `lambda_rank_param`; they shape no
prediction, and later ones do not read them.
"""

import struct

_LENGTH = struct.Struct(">q")


def _text(content: bytes) -> bytes:
    """A text of UBJSON, as keys have it."""
    return b"L" + _LENGTH.pack(len(content)) + content


# Keys are in the order of the alphabet, so each of these is the first of its object. No text of a user has such bytes:
# names and attributes have no NUL.
_BEFORE_BASE_SCORE = _text(b"learner_model_param") + b"{" + _text(b"base_score") + b"S"
_OBJECTIVE = _text(b"objective") + b"{"
_OF_RANKING = _OBJECTIVE + _text(b"lambdarank_param") + b"{"
_EMPTY_PARAMETERS = _text(b"lambda_rank_param") + b"{}"


def base_scores(model: bytes) -> tuple[str, ...]:
    """Return the numbers in a model's `base_score`, one for all outputs or one for each.

    Args:
        model: UBJSON, as XGBoost has written it.
    """
    start, stop = _find_base_score(model)
    return tuple(model[start:stop].decode("ascii").strip("[]").split(","))


def for_every_reader(model: bytes) -> bytes:
    """Return the same model with its `base_score` as a number, where it is the same for all outputs.

    A model that ranks gets empty parameters for XGBoost before 2.0, too. Every other byte stays as it is.

    Args:
        model: UBJSON, as XGBoost has written it.
    """
    start, stop = _find_base_score(model)
    before, after, different = model[: start - len(_text(b""))], model[stop:], {*base_scores(model)}
    score = _text(different.pop().encode()) if len(different) == 1 else model[len(before) : stop]
    return before + score + after.replace(_OF_RANKING, _OBJECTIVE + _EMPTY_PARAMETERS + _OF_RANKING[len(_OBJECTIVE) :])


def _find_base_score(model: bytes) -> tuple[int, int]:
    """Return where its text begins and ends."""
    length = model.index(_BEFORE_BASE_SCORE) + len(_BEFORE_BASE_SCORE) + len(b"L")
    start = length + _LENGTH.size
    return start, start + _LENGTH.unpack_from(model, length)[0]
