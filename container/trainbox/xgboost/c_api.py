"""XGBoost's C API, as far as a server needs it: models that predict without the Python package.

To import that package takes longer than all else that `serve` does until it answers, most of it for SciPy, and 20 MB.
The C functions are public (https://xgboost.readthedocs.io/en/stable/c.html); the package calls the same ones.
"""

import ctypes
import importlib.util
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from trainbox.errors import ProgramError

_UBJSON = b'{"format": "ubj"}'
#: What is predicted, and what `XGBoosterPredictFromDMatrix` calls it.
Kind: TypeAlias = Literal["value", "contributions", "leaf"]
_TYPES: dict[Kind, int] = {"value": 0, "contributions": 2, "leaf": 6}


class XGBoostError(Exception):
    """A function of XGBoost has failed; the first line of what it says."""


class Library:
    """The library of the XGBoost that is installed; Python's package for it is not imported.

    Raises:
        ProgramError: XGBoost is not installed.
    """

    def __init__(self) -> None:
        self._functions = ctypes.CDLL(_find_library())
        self._functions.XGBGetLastError.restype = ctypes.c_char_p
        numbers = [ctypes.c_int() for _ in range(3)]
        self._functions.XGBoostVersion(*map(ctypes.byref, numbers))
        self.version = ".".join(str(number.value) for number in numbers)

    def function(self, name: str) -> Any:  # noqa: ANN401 - a function of C
        """Return a function; what it returns is for `check`."""
        return getattr(self._functions, name)

    def check(self, code: int) -> None:
        """Look at what a function has returned.

        Raises:
            XGBoostError: It has failed.
        """
        if code:
            raise XGBoostError(self._functions.XGBGetLastError().decode(errors="replace").partition("\n")[0])

    def call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401 - what ctypes takes
        """Call a function.

        Raises:
            XGBoostError: It has failed.
        """
        self.check(self.function(name)(*arguments))


def _find_library() -> str:
    """Return the path of the library, as XGBoost's own search finds it."""
    package = importlib.util.find_spec("xgboost")
    if package is None or package.origin is None:
        raise ProgramError("XGBoost is not installed, and the model needs it", hint="pip install 'trainbox[xgboost]'")
    found: str = _run_alone(Path(package.origin).with_name("libpath.py")).find_lib_path()[0]
    return found


def _run_alone(path: Path) -> ModuleType:
    """Run a module of a package without the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018 - it is a file of Python
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Booster:
    """A model.

    Args:
        library: XGBoost.
        content: The model, as UBJSON or JSON.

    Raises:
        XGBoostError: It is no model.
    """

    def __init__(self, library: Library, content: bytes) -> None:
        self.library = library
        self.handle = ctypes.c_void_p()
        library.call("XGBoosterCreate", None, ctypes.c_uint64(0), ctypes.byref(self.handle))
        weakref.finalize(self, library.function("XGBoosterFree"), self.handle)
        for name, value in {"nthread": "1", "device": "cpu"}.items():
            self.set_param(name, value)
        library.call("XGBoosterLoadModelFromBuffer", self.handle, content, ctypes.c_uint64(len(content)))

    def set_param(self, name: str, value: str) -> None:
        """Set a parameter from now on."""
        self.library.call("XGBoosterSetParam", self.handle, name.encode(), value.encode())

    def num_features(self) -> int:
        """Return how many features a row has."""
        count = ctypes.c_uint64()
        self.library.call("XGBoosterGetNumFeature", self.handle, ctypes.byref(count))
        return count.value

    def feature_info(self, field: str) -> tuple[str, ...]:
        """Return the `feature_name` or `feature_type` of each feature; nothing where the model has none."""
        count, texts = ctypes.c_uint64(), ctypes.POINTER(ctypes.c_char_p)()
        found = ctypes.byref(count), ctypes.byref(texts)
        self.library.call("XGBoosterGetStrFeatureInfo", self.handle, field.encode(), *found)
        return tuple(texts[place].decode() for place in range(count.value))

    def config(self) -> dict[str, Any]:
        """Return the parameters that it has now."""
        return json.loads(self._bytes("XGBoosterSaveJsonConfig"))  # type: ignore[no-any-return]

    def save(self) -> bytes:
        """Return it as UBJSON."""
        return self._bytes("XGBoosterSaveModelToBuffer", _UBJSON)

    def _bytes(self, name: str, *arguments: bytes) -> bytes:
        size, content = ctypes.c_uint64(), ctypes.POINTER(ctypes.c_char)()
        self.library.call(name, self.handle, *arguments, ctypes.byref(size), ctypes.byref(content))
        return ctypes.string_at(content, size.value)

    def predict(self, matrix: "Matrix", kind: Kind = "value") -> npt.NDArray[np.float32]:
        """Return what `Booster.predict` of the package does, without looking at names.

        Args:
            matrix: The rows.
            kind: `contributions` and `leaf` are its `pred_contribs` and `pred_leaf`.

        Raises:
            XGBoostError: It cannot.
        """
        asked = {"type": _TYPES[kind], "training": False, "strict_shape": False}
        config = json.dumps({**asked, "iteration_begin": 0, "iteration_end": 0}).encode()
        found = Prediction()
        self.library.call("XGBoosterPredictFromDMatrix", self.handle, matrix.handle, config, *found.references)
        return found.array()


class Prediction:
    """Where XGBoost leaves what it predicts, until it predicts anew."""

    def __init__(self) -> None:
        self._sizes, self._dimensions = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64()
        self._numbers = ctypes.POINTER(ctypes.c_float)()
        #: The last three arguments of its functions.
        self.references = ctypes.byref(self._sizes), ctypes.byref(self._dimensions), ctypes.byref(self._numbers)

    def array(self) -> npt.NDArray[np.float32]:
        """Return a copy."""
        shape = self._sizes[: self._dimensions.value]
        count = 1
        for size in shape:
            count *= size
        return np.frombuffer(bytearray(ctypes.string_at(self._numbers, 4 * count)), np.float32).reshape(shape)


class Matrix:
    """Rows, as XGBoost keeps them.

    Args:
        library: XGBoost.
        rows: Dense, or sparse in the form of SciPy's `csr_matrix`; NaN, and what is not stored, is missing.
        types: `q` or `c` for each feature; None where all are numbers.
        threads: To copy them with.
    """

    def __init__(self, library: Library, rows: Any, types: Sequence[str] | None, threads: int) -> None:  # noqa: ANN401
        self.handle = ctypes.c_void_p()
        config = json.dumps({"missing": float("nan"), "nthread": threads}).encode()
        end = config, ctypes.byref(self.handle)
        if isinstance(rows, np.ndarray):
            dense = np.ascontiguousarray(rows, np.float32)
            library.call("XGDMatrixCreateFromDense", _interface(dense), *end)
        else:
            parts = [np.ascontiguousarray(part) for part in (rows.indptr, rows.indices, rows.data)]
            width = ctypes.c_uint64(rows.shape[1])
            library.call("XGDMatrixCreateFromCSR", *map(_interface, parts), width, *end)
        weakref.finalize(self, library.function("XGDMatrixFree"), self.handle)
        if types is not None:
            texts = (ctypes.c_char_p * len(types))(*(kind.encode() for kind in types))
            library.call("XGDMatrixSetStrFeatureInfo", self.handle, b"feature_type", texts, ctypes.c_uint64(len(types)))


def _interface(array: npt.NDArray[Any]) -> bytes:
    """Return what says to XGBoost where an array lies (https://numpy.org/doc/stable/reference/arrays.interface.html)."""
    about = {
        "data": [array.ctypes.data, True],
        "shape": array.shape,
        "typestr": array.dtype.str,
        "version": 3,
    }
    return json.dumps(about).encode()
