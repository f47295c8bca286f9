"""Make a model that every XGBoost reads correctly: 1.7.6, 3.0.5, and the versions that train here.

The base score: XGBoost 3.1 and later write an array, `[2.03E-2]`. Earlier versions, and SageMaker's
built-in hosting, load that without an error and predict from 0.5. All versions read a plain number correctly.

Dropout: XGBoost 3.4 writes the weights of `dart` within the common trees, where earlier versions do not look: they load
the model without an error, and use all trees in full. All versions read the weights in their earlier place.

Objectives: XGBoost before 2.0 needs parameters of its own in models for ranking and `reg:squaredlogerror`; they do not
change predictions, and later versions ignore them.
"""

import struct

_LENGTH = struct.Struct(">q")


def _key(name: bytes) -> bytes:
    """A key of UBJSON; a text is the same behind an `S`."""
    return b"L" + _LENGTH.pack(len(name)) + name


# Keys are in the order of the alphabet: what is said here to begin an object does so in every model. No text of a user
# looks like one of these, as names and attributes have no NUL, and are followed by no object.
_BASE_SCORE = _key(b"learner_model_param") + b"{" + _key(b"base_score") + b"S"
_BOOSTER = _key(b"gradient_booster") + b"{"
_TREES = _key(b"model") + b"{"
_NAME = _key(b"name") + b"S"
_OF_TREES = _NAME + _key(b"gbtree") + b"}"
_WEIGHTS = _key(b"weight_drop")
_OBJECTIVE = _key(b"objective") + b"{"
#: What an objective is, and the same with what XGBoost before 2.0 asks for.
_OBJECTIVES = (
    (
        _OBJECTIVE + _key(b"lambdarank_param") + b"{",
        _OBJECTIVE + _key(b"lambda_rank_param") + b"{}" + _key(b"lambdarank_param") + b"{",
    ),
    (
        _OBJECTIVE + _NAME + _key(b"reg:squaredlogerror") + b"}",
        _OBJECTIVE + _NAME + _key(b"reg:squaredlogerror") + _key(b"reg_loss_param") + b"{}}",
    ),
)


def base_scores(model: bytes) -> tuple[str, ...]:
    """Return the numbers in a model's `base_score`, one for all outputs or one for each.

    Args:
        model: UBJSON, as XGBoost has written it.
    """
    start, stop = _find_base_score(model)
    return tuple(model[start:stop].decode("ascii").strip("[]").split(","))


def spell_base_score(model: bytes) -> bytes:
    """Return the same model with its `base_score` as a number, where it is the same for all outputs.

    Every other byte stays as it is.

    Args:
        model: UBJSON, as XGBoost has written it.
    """
    different = {*base_scores(model)}
    if len(different) > 1:
        return model
    start, stop = _find_base_score(model)
    return model[: start - len(_key(b""))] + _key(different.pop().encode()) + model[stop:]


def _find_base_score(model: bytes) -> tuple[int, int]:
    """Return where its text begins and ends."""
    length = model.index(_BASE_SCORE) + len(_BASE_SCORE) + len(b"L")
    start = length + _LENGTH.size
    return start, start + _LENGTH.unpack_from(model, length)[0]


def for_every_reader(model: bytes) -> bytes:
    """Return the same model with base score, weights of dropout and parameters of the objective where all readers look.

    Args:
        model: UBJSON, as XGBoost has written it.
    """
    model = _move_weights(spell_base_score(model))
    for objective, for_all in _OBJECTIVES:
        model = model.replace(objective, for_all)
    return model


def _move_weights(model: bytes) -> bytes:
    """Return the model as XGBoost before 3.4 writes `dart`: a booster around the trees, which has the weights."""
    begin = model.find(_BOOSTER + _TREES)
    weights = model.rfind(_WEIGHTS)
    end = model.find(b"}" + _OF_TREES, weights)
    if not 0 <= begin < weights < end:
        return model
    trees = model[begin + len(_BOOSTER) : weights] + b"}" + _OF_TREES
    booster = _BOOSTER + _key(b"gbtree") + b"{" + trees + _NAME + _key(b"dart") + model[weights:end] + b"}"
    return model[:begin] + booster + model[end + len(b"}" + _OF_TREES) :]
