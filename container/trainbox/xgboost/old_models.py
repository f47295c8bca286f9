"""Models in the binary format of XGBoost before 1.0 to 3.0, and pickled boosters, as the JSON that every XGBoost reads.

XGBoost 3.1 and later do not read the binary format, and SageMaker's built-in saved a pickle before its version 1.3. No
object is made of a pickle here: its content is taken from it, and what else it asks for is refused.

The format (`src/learner.cc`, `src/gbm/gbtree_model.cc` and `src/tree/tree_model.cc` of XGBoost 1.0): parameters of a
fixed size, little-endian, each with reserved bytes; texts and arrays behind their 64-bit length.
"""

import io
import json
import math
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trainbox.errors import DataError
from trainbox.xgboost.model_check.ubjson import decode

_PICKLE, _CONFIG_BEHIND = b"\x80", b"CONFIG-offset:"
#: What damaged bytes make the readers raise.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,  # lengths in a pickle are taken as they stand
    RecursionError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
_HINT = "load it in the XGBoost that wrote it, and save it with Booster.save_model('model.ubj')"
_PARAMS = struct.Struct("<fIiiiIII104x")
_TREES = struct.Struct("<iiiiqii128x")
_TREE = struct.Struct("<6i124x")
_LINEAR = struct.Struct("<Ii128x")
_LENGTH = struct.Struct("<Q")
_NODE = np.dtype([("parent", "<i4"), ("left", "<i4"), ("right", "<i4"), ("split", "<u4"), ("condition", "<f4")])
_STATISTICS = np.dtype([("loss", "<f4"), ("hessian", "<f4"), ("weight", "<f4"), ("children", "<i4")])
_LOW_BITS, _MOST_TEXT, _MOST_TREES = 2**31 - 1, 2**16, 2**24
#: Of the form in which they are handed to XGBoost.
_VERSION = (2, 0, 0)
_RENAMED = {"reg:linear": "reg:squarederror", "gpu:reg:linear": "reg:squarederror"}
#: What an objective makes of the margin that XGBoost before 1.0 wrote for the base score.
_OF_MARGIN: Mapping[str, Callable[[float], float]] = {
    **dict.fromkeys(("binary:logistic", "reg:logistic"), lambda margin: 1 / (1 + math.exp(-margin))),
    **dict.fromkeys(("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox"), math.exp),
}
#: By module and name: what a pickled booster is made of.
_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("builtins", "bytearray"): bytearray,
    ("_codecs", "encode"): lambda text, _encoding: text.encode("latin-1"),
}


def is_old(content: bytes) -> bool:
    """Return whether a model is a pickle or in the binary format.

    Args:
        content: The file.
    """
    return not content.startswith(b"{")


def convert(content: bytes, *, source: str) -> bytes:
    """Return a model as JSON.

    Args:
        content: A pickled booster, or the binary format.
        source: Where it is from, for the message.

    Raises:
        DataError: It is neither, or holds something else.
    """
    try:
        return _convert(_unpickle(content) if content.startswith(_PICKLE) else content)
    except _DAMAGED as error:
        raise DataError(
            f"{source} is not a model of XGBoost: {str(error) or type(error).__name__}", hint=_HINT
        ) from error


def _convert(model: bytes) -> bytes:
    if model.startswith(b"{"):  # what a booster of XGBoost 1.1 and later pickles: the model, and how it was trained
        document: Any = json.loads(model) if model[1:2] in b'"\n ' else decode(model)
        return json.dumps(document["Model"], default=_texts, ensure_ascii=False).encode()
    if model.startswith(_CONFIG_BEHIND):
        model = model[len(_CONFIG_BEHIND) + _LENGTH.size :]
    # XGBoost reads no `\u00e9`.
    return json.dumps(_Reader(model.removeprefix(b"binf")).model(), ensure_ascii=False).encode()


class _Booster:
    """Stands for `xgboost.core.Booster` in a pickle: takes its content, and loads nothing."""

    state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as the base class has it
        if (module, name) == ("xgboost.core", "Booster"):
            return _Booster
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is no part of a Booster")
        return _ALLOWED[module, name]


def _unpickle(content: bytes) -> bytes:
    """Return what a pickled booster holds: its model, in one of three forms."""
    found = _Unpickler(io.BytesIO(content)).load()
    handle = found.state.get("handle") if isinstance(found, _Booster) and isinstance(found.state, dict) else None
    if not isinstance(handle, bytes | bytearray):
        raise ValueError("the pickle holds no Booster")  # noqa: TRY004 - the bytes are wrong
    return bytes(handle)


class _Reader:
    """Reads the binary format from its begin.

    Args:
        content: The model.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def model(self) -> dict[str, Any]:
        """Return the model as JSON has it."""
        base_score, features, classes, has_attributes, _, major, _, targets = self._struct(_PARAMS)
        objective, booster = self._text(), self._text()
        objective = _RENAMED.get(objective, objective)
        if not major and objective in _OF_MARGIN:
            base_score = _OF_MARGIN[objective](base_score)
        boosted = self._linear() if booster == "gblinear" else self._trees(booster, features)
        attributes = self._attributes() if has_attributes else {}
        # XGBoost 1 keeps the parameters of the objective among the attributes.
        kept: Any = json.loads(attributes.pop("objective", "{}"))
        parameters = {**_parameters(objective, classes), **(kept if isinstance(kept, dict) else {}), "name": objective}
        return {
            "learner": {
                "attributes": attributes,
                "feature_names": [],
                "feature_types": [],
                "gradient_booster": boosted,
                "learner_model_param": {
                    "base_score": str(np.float32(base_score)),
                    "num_class": str(classes),
                    "num_feature": str(features),
                    "num_target": str(max(1, targets)),
                },
                "objective": parameters,
            },
            "version": list(_VERSION),
        }

    def _trees(self, booster: str, features: int) -> dict[str, Any]:
        if booster not in {"gbtree", "dart"}:
            raise ValueError(f"the booster is {booster[:40]!r}")
        count, _, _, _, buffer, _, leaf_vector = self._struct(_TREES)
        if not 0 <= count <= _MOST_TREES or buffer or leaf_vector > 1:
            raise ValueError(f"it has {count:,} trees, a buffer of {buffer:,} and leaves of {leaf_vector:,} values")
        trees = [self._tree(number, features) for number in range(count)]
        groups = self._array("<i4", count)
        outputs = int(groups.max()) + 1 if count else 1
        trees_of_all = {
            "model": {
                "gbtree_model_param": {"num_trees": str(count), "num_parallel_tree": "1"},
                "tree_info": groups.tolist(),
                "iteration_indptr": list(range(0, count + 1, outputs)),
                "trees": trees,
            },
            "name": "gbtree",
        }
        if booster == "gbtree":
            return trees_of_all
        weights = self._array("<f4", self._struct(_LENGTH)[0]) if count else np.empty(0, np.float32)
        return {"gbtree": trees_of_all, "name": "dart", "weight_drop": _texts(weights)}

    def _tree(self, number: int, features: int) -> dict[str, Any]:
        _, count, deleted, _, _, leaf_vector = self._struct(_TREE)
        if count <= 0 or leaf_vector > 1:
            raise ValueError(f"tree {number} has {count:,} nodes and leaves of {leaf_vector:,} values")
        nodes, statistics = self._array(_NODE, count), self._array(_STATISTICS, count)
        split = nodes["split"]
        return {
            "id": number,
            "tree_param": {
                "num_nodes": str(count),
                "num_deleted": str(deleted),
                "num_feature": str(features),
                "size_leaf_vector": "0",
            },
            "left_children": nodes["left"].tolist(),
            "right_children": np.where(nodes["left"] < 0, -1, nodes["right"]).tolist(),
            "parents": (nodes["parent"] & _LOW_BITS).tolist(),
            "split_indices": (split & _LOW_BITS).tolist(),
            "split_conditions": _texts(nodes["condition"]),
            "default_left": (split >> 31).astype(int).tolist(),
            "split_type": [0] * count,
            "loss_changes": _texts(statistics["loss"]),
            "sum_hessian": _texts(statistics["hessian"]),
            "base_weights": _texts(statistics["weight"]),
            **{name: [] for name in ("categories", "categories_nodes", "categories_segments", "categories_sizes")},
        }

    def _linear(self) -> dict[str, Any]:
        self._struct(_LINEAR)
        weights = _texts(self._array("<f4", self._struct(_LENGTH)[0]))
        # The format does not count rounds; a linear model of none would not be asked.
        return {"model": {"weights": weights, "boosted_rounds": 1}, "name": "gblinear"}

    def _attributes(self) -> dict[str, str]:
        (count,) = self._struct(_LENGTH)
        if count > _MOST_TEXT:
            raise ValueError(f"it has {count:,} attributes")
        pairs = [(self._text(), self._text()) for _ in range(count)]
        # It chose trees in an older form of early stopping; what it means now is written by the library itself.
        return {name: value for name, value in pairs if name != "best_ntree_limit"}

    def _struct(self, form: struct.Struct) -> tuple[Any, ...]:
        if form.size > len(self._content) - self._at:
            raise ValueError(f"it ends after {len(self._content):,} bytes")
        found = form.unpack_from(self._content, self._at)
        self._at += form.size
        return found

    def _text(self) -> str:
        (length,) = self._struct(_LENGTH)
        if length > _MOST_TEXT:
            raise ValueError(f"a text of {length:,} bytes")
        return self._array("u1", length).tobytes().decode()

    def _array(self, kind: Any, count: int) -> npt.NDArray[Any]:  # noqa: ANN401 - a type or its name
        dtype = np.dtype(kind)
        if count * dtype.itemsize > len(self._content) - self._at:
            raise ValueError(f"it ends in an array of {count:,} numbers")
        found: npt.NDArray[Any] = np.frombuffer(self._content, dtype, count, self._at)
        self._at += count * dtype.itemsize
        return found


def _texts(numbers: npt.NDArray[Any]) -> list[Any]:
    """Return numbers as the shortest decimals that are read back as the same: JSON has no others."""
    if numbers.dtype.kind != "f":
        found: list[Any] = numbers.tolist()
        return found
    return [float(str(number)) for number in numbers.astype(np.float32)]


def _parameters(objective: str, classes: int) -> dict[str, Any]:
    """Return what an objective must have; it shapes no prediction but for the number of classes."""
    if objective.startswith("multi:"):
        return {"softmax_multiclass_param": {"num_class": str(classes)}}
    if objective.startswith("rank:"):
        return {"lambdarank_param": {}}
    if objective == "count:poisson":
        return {"poisson_regression_param": {"max_delta_step": "0.7"}}
    if objective == "survival:aft":
        return {"aft_loss_param": {"aft_loss_distribution": "normal", "aft_loss_distribution_scale": "1"}}
    if objective == "reg:tweedie":
        return {"tweedie_regression_param": {"tweedie_variance_power": "1.5"}}
    return {} if objective in {"reg:gamma", "survival:cox", "binary:hinge"} else {"reg_loss_param": {}}
