"""A network that answers requests: an exported program, or TorchScript, on the CPU, in inference mode.

A product of matrices rounds by the number of its rows, and by the processor: a row gets other bits alone than among
1,024. The answer to a row is what the library gives for it with seven rows of zeros below. Whether this network gives
the same in larger calls is tried before the first request: for some in any multiple of 8 rows, for some in blocks of 8.
One that does not is asked with each request as it comes, and requests are not joined.
"""

import io
import math
import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch

from trainbox.contract.hosting import NO_EXTRAS
from trainbox.contract.model_card import Features, ModelCard
from trainbox.contract.model_file import read_model_file
from trainbox.errors import DataError
from trainbox.log_lines import emit
from trainbox.torch.archives import find_code

Floats: TypeAlias = npt.NDArray[np.float32]

#: Calls are padded with zeros to a multiple of so many rows.
STEP = 8
#: The most rows of a call that is tried, and what they have together.
_MOST_ROWS, _MOST_NUMBERS = 256, 2_000_000


def load_predictor(
    model_dir: Path, name: str, card: ModelCard | None, *, is_script: bool, may_run_code: bool
) -> "NetworkPredictor":
    """Load a network.

    Args:
        model_dir: Where it is.
        name: Its file.
        card: The model's; None for one that trainbox has not made.
        is_script: Whether it is TorchScript, and not an exported program.
        may_run_code: Whether the file may hold pickles or machine code.

    Raises:
        DataError: The file cannot be read, is no network, or holds code that may not run.
    """
    source = model_dir / name
    content = read_model_file(model_dir, name)
    if not is_script and (code := find_code(content)):
        if not may_run_code:
            raise DataError(
                f"{source} holds {code}, which is code, and TRAINBOX_SERVE_CODE is never",
                hint="export the network again with torch.export.save, its weights as plain tensors; or allow its code",
            )
        emit(f"{name} holds {code}: loading it runs code of whoever made it")
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forms that are on their way out, which users cannot change here
            if is_script:
                module: Any = torch.jit.load(  # type: ignore[no-untyped-call]
                    io.BytesIO(content), map_location="cpu"
                ).eval()
                shape = _shape_of_script(module)
            else:
                program = torch.export.load(io.BytesIO(content))
                module, shape = program.module(), _shape_of_program(program)
    except Exception as error:  # damaged files raise whatever the deserializer meets
        text = str(error).partition("\n")[0]
        raise DataError(
            f"{source} cannot be loaded by PyTorch {torch.__version__}: {type(error).__name__}: {text}",
            hint="is the file whole? export the network with the version that its card names",
        ) from error
    return NetworkPredictor(module, card or _describe(shape, is_script=is_script))


class NetworkPredictor:
    """A network on the CPU; see `contract.hosting.Predictor`.

    Answers are what the network returns, of one output as (n,): of a bundled classifier its logits.

    Args:
        module: Called with a float32 tensor of rows.
        card: Its card.
    """

    extras = NO_EXTRAS

    def __init__(self, module: Any, card: ModelCard) -> None:  # noqa: ANN401 - modules of programs have no type
        self.card = card
        self._module = module
        self._shape = card.shape or ((card.features.count,) if card.features.count else ())
        #: Rows of a call; None is all that come.
        self._block: int | None = None
        self.is_rowwise = False
        self._choose_block()

    def predict(self, rows: Any) -> Floats:  # noqa: ANN401 - dense or sparse
        """Return the outputs for each row.

        Raises:
            DataError: The network does not take these rows.
        """
        dense = _densify(rows, np.nan if self.card.absent == "missing" else 0.0)
        if self._shape and dense.shape[1:] != self._shape:
            given, known = (" x ".join(map(str, shape)) for shape in (dense.shape[1:], self._shape))
            raise DataError(f"a row is {given}, and the model takes {known}")
        if not len(dense):
            return self._compute(np.zeros((1, *dense.shape[1:]), np.float32), self._block)[:0]
        return self._predict(dense, self._block)

    def set_threads(self, count: int) -> None:
        """Use so many threads; whether rows are independent of each other is tried again."""
        torch.set_num_threads(count)
        if count > 1:
            self._choose_block()

    def _predict(self, rows: Floats, block: int | None) -> Floats:
        size = block or len(rows)
        parts = [self._compute(rows[place : place + size], block) for place in range(0, len(rows), size)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _compute(self, rows: Floats, block: int | None) -> Floats:
        count = len(rows) if block in (None, 1) else -(-len(rows) // STEP) * STEP
        padded = rows
        if count > len(rows):
            padded = np.zeros((count, *rows.shape[1:]), np.float32)
            padded[: len(rows)] = rows
        try:
            with torch.inference_mode():
                said = self._module(torch.from_numpy(padded))
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
            raise DataError(f"the network does not take the rows: {str(error).partition(chr(10))[0]}") from error
        if not isinstance(said, torch.Tensor) or not said.dim() or len(said) != count:
            raise DataError(
                f"the network returns {type(said).__name__}, expected a tensor with a number or more for each row",
                hint="add code/inference.py with predict_fn",
            )
        found: Floats = said.float().numpy()[: len(rows)]
        return found[:, 0] if found.shape[1:] == (1,) else found

    def _choose_block(self) -> None:
        """Find the largest calls in which a row gets the bits that it gets alone."""
        self._block, self.is_rowwise = None, False
        if not self._shape:
            return
        most = min(_MOST_ROWS, max(2, _MOST_NUMBERS // math.prod(self._shape) // STEP) * STEP)
        rows = np.random.default_rng(0).normal(size=(most, *self._shape)).astype(np.float32)
        try:
            alone = np.concatenate([self._compute(rows[place : place + 1], STEP) for place in range(most)])
        except DataError as error:
            self._block, self.is_rowwise = 1, True
            emit(f"the network does not take {STEP} rows at once and is asked row by row: {error.message}")
            return
        for block in (most, STEP):
            counts = range(STEP, most + 1, STEP)
            if all(self._predict(rows[:count], block).tobytes() == alone[:count].tobytes() for count in counts):
                self._block, self.is_rowwise = block, True
                return
        emit("the network gives a row other bits alone than among others: requests are not joined")


def _densify(rows: Any, absent: float) -> Floats:  # noqa: ANN401 - dense or sparse
    if not scipy.sparse.issparse(rows):
        found: Floats = np.ascontiguousarray(rows, np.float32)
        return found if found.flags.writeable else found.copy()
    cells = rows.tocoo()
    dense = np.full(rows.shape, absent, np.float32)
    dense[cells.row, cells.col] = cells.data
    return dense


def _shape_of_program(program: Any) -> tuple[int, ...]:  # noqa: ANN401 - an ExportedProgram
    """Return the shape of one row, from the example that the program was exported with; empty if it has none."""
    inputs: Any = (program.example_inputs or ((), {}))[0]
    return tuple(inputs[0].shape[1:]) if len(inputs) == 1 and isinstance(inputs[0], torch.Tensor) else ()


def _shape_of_script(module: Any) -> tuple[int, ...]:  # noqa: ANN401 - a ScriptModule
    """Return the shape of one row if the first layer is linear; TorchScript does not say it otherwise."""
    first = next(iter(module.parameters()), None)
    is_matrix = first is not None and first.dim() == 2  # noqa: PLR2004 - outputs x inputs
    return (int(first.shape[1]),) if first is not None and is_matrix else ()


def _describe(shape: tuple[int, ...], *, is_script: bool) -> ModelCard:
    """Return the card of a network that has none."""
    return ModelCard(
        framework="pytorch",
        algorithm="TorchScript" if is_script else "torch.export",
        objective="",
        features=Features(shape[0] if len(shape) == 1 else 0),
        shape=shape,
    )
