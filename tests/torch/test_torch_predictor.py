"""A network gives each row the same bits alone and in any request: those of the library on rows padded to eights."""

import functools
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse
import torch
from torch import nn

from tests.frozen.fixtures import FIXTURES
from trainbox.contract.model_card import ModelCard, features_of, read_card
from trainbox.errors import DataError
from trainbox.torch.archives import find_code, is_plain
from trainbox.torch.networks.architectures import convolutions, export, perceptron
from trainbox.torch.networks.encoders import Columns, Pixels
from trainbox.torch.networks.hyperparameters import NetworkParams
from trainbox.torch.predictor import NetworkPredictor, load_predictor

FEATURES, MOST_ROWS = 6, 130
NAMES = tuple("abcdef")
TABLE = FIXTURES / "pytorch-table/model"


@pytest.fixture(autouse=True)
def _as_many_threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def table_net(outputs: int) -> nn.Module:
    torch.manual_seed(1)
    rows = torch.from_numpy(draw(50, FEATURES))
    rows[:, 2] = torch.arange(50) % 4
    encoder = Columns(rows, NAMES, ["c"])
    return nn.Sequential(encoder, perceptron((encoder.width,), outputs, NetworkParams(hidden=(64, 32))))


def image_net() -> nn.Module:
    torch.manual_seed(1)
    images = torch.from_numpy(draw(8, 3, 12, 12))
    return nn.Sequential(Pixels(images), convolutions((3, 12, 12), 4, NetworkParams()))


class Weighed(nn.Module):
    """Each row has a sum of its own, without a product of matrices."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows * torch.arange(1.0, FEATURES + 1)).cumsum(1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "sums": (Weighed, (FEATURES,)),
    "perceptron of classes": (lambda: table_net(3), (FEATURES,)),
    "perceptron of one number": (lambda: table_net(1), (FEATURES,)),
    "convolutions": (image_net, (3, 12, 12)),
}


@functools.cache
def export_once(name: str) -> bytes:
    """Half a second of a processor for each."""
    make, shape = NETWORKS[name]
    return export(make(), torch.from_numpy(draw(2, *shape)))


def card_of(shape: tuple[int, ...]) -> ModelCard:
    names = NAMES if len(shape) == 1 else ()
    return ModelCard(
        framework="pytorch", algorithm="x", objective="regression", features=features_of(names), shape=shape
    )


def load(directory: Path, content: bytes, card: ModelCard | None = None, *, code: bool = False) -> NetworkPredictor:
    (directory / "model.pt2").write_bytes(content)
    return load_predictor(directory, "model.pt2", card, is_script=False, may_run_code=code)


def padded_alone(module: Any, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the library gives for each row, with seven of zeros below it."""
    said = []
    for row in rows:
        eight = np.zeros((8, *row.shape), np.float32)
        eight[0] = row
        with torch.no_grad():
            said.append(module(torch.from_numpy(eight)).float().numpy()[:1])
    found: npt.NDArray[np.float32] = np.concatenate(said)
    return found[:, 0] if found.shape[1] == 1 else found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_row_gets_the_same_bits_alone_and_in_any_request(name: str, tmp_path: Path) -> None:
    _, shape = NETWORKS[name]
    content = export_once(name)
    ours = load(tmp_path, content, card_of(shape))
    module = torch.export.load(io.BytesIO(content)).module()
    rows = draw(MOST_ROWS, *shape)
    if len(shape) == 1:
        rows[::4, 1] = np.nan
    expected = padded_alone(module, rows)
    assert ours.predict(rows[:0]).shape == (0, *expected.shape[1:])
    if name == "sums":
        assert ours.is_rowwise
    for count in range(1, MOST_ROWS + 1) if len(shape) == 1 else (1, 2, 7, 8, 9, 64):
        if not ours.is_rowwise:  # by the processor: then each request is what the library makes of it
            with torch.no_grad():
                said = module(torch.from_numpy(rows[:count])).numpy()
            expected = said[:, 0] if said.shape[1] == 1 else said
        assert ours.predict(rows[:count]).tobytes() == expected[:count].tobytes()


def test_a_network_may_go_in_blocks_of_eight_where_larger_calls_round_otherwise() -> None:
    class Rounding(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows * (2 if len(rows) > 8 else 1)

    ours = NetworkPredictor(Rounding(), card_of((FEATURES,)))
    rows = draw(20, FEATURES)
    assert ours.is_rowwise
    assert ours.predict(rows).tobytes() == rows.tobytes()


def test_a_network_of_an_earlier_version_is_loaded_by_its_card() -> None:
    ours = load_predictor(TABLE, "model.pt2", read_card(TABLE), is_script=False, may_run_code=False)
    assert ours.predict(draw(3, 4)).shape == (3, 2)


def test_a_sparse_row_lacks_what_it_does_not_store(tmp_path: Path) -> None:
    ours = load(tmp_path, export_once("perceptron of classes"), card_of((FEATURES,)))
    dense = draw(5, FEATURES)
    dense[np.abs(dense) < 0.5] = 0
    expected = ours.predict(np.where(dense == 0, np.nan, dense))
    assert ours.predict(scipy.sparse.csr_matrix(dense)).tobytes() == expected.tobytes()


class Centred(nn.Module):
    """A row depends on those beside it."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows - rows.mean(0))[:, :1]


def test_a_network_whose_rows_depend_on_each_other_is_not_joined(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ours = load(tmp_path, export(Centred(), torch.from_numpy(draw(2, FEATURES))))
    assert ours.is_rowwise is False
    assert "requests are not joined" in capfd.readouterr().err


def test_a_program_of_one_row_is_asked_row_by_row(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program, content = torch.export.export(table_net(2).eval(), (torch.from_numpy(draw(1, FEATURES)),)), io.BytesIO()
    torch.export.save(program, content)
    ours = load(tmp_path, content.getvalue())
    assert ours.card.shape == (FEATURES,)
    assert ours.predict(draw(3, FEATURES)).shape == (3, 2)
    assert "is asked row by row" in capfd.readouterr().err


def test_torchscript_is_loaded_and_tells_its_first_layer(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(net), str(tmp_path / "net.pt"))
    ours = load_predictor(tmp_path, "net.pt", None, is_script=True, may_run_code=True)
    rows = draw(9, FEATURES)
    assert ours.card.features.count == FEATURES
    np.testing.assert_allclose(ours.predict(rows), padded_alone(net, rows), rtol=1e-5, atol=1e-6)


def test_what_is_no_network_and_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_predictor(tmp_path, "model.pt2", None, is_script=False, may_run_code=True)
    with pytest.raises(DataError, match="cannot be loaded by PyTorch"):
        load(tmp_path, b"PK", code=True)
    with pytest.raises(DataError, match="cannot be loaded by PyTorch"):
        load_predictor(tmp_path, "model.pt2", None, is_script=True, may_run_code=True)
    ours = load(tmp_path, export_once("perceptron of classes"))
    with pytest.raises(DataError, match="a row is 5, and the model takes 6"):
        ours.predict(draw(2, 5))
    assert not ours.extras


# ---- what would run as it is loaded ----


def with_entry(content: bytes, name: str, change: Any) -> bytes:
    """The same archive with another entry."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.namelist():
            found = old.read(entry)
            new.writestr(entry, json.dumps(change(json.loads(found))) if entry.endswith(name) else found)
    return changed.getvalue()


@pytest.fixture
def exported() -> bytes:
    return export_once("perceptron of classes")


def test_what_training_exports_holds_no_code(exported: bytes) -> None:
    assert find_code(exported) == ""
    assert find_code((TABLE / "model.pt2").read_bytes()) == ""
    assert find_code(export_once("convolutions")) == ""


def test_a_pickle_among_the_weights_is_refused_where_no_code_may_run(exported: bytes, tmp_path: Path) -> None:
    def mark(document: Any) -> Any:
        next(iter(document["config"].values()))["use_pickle"] = True
        return document

    hidden = with_entry(exported, "model_weights_config.json", mark)
    assert find_code(hidden) == "a pickle (weight_0)"
    with pytest.raises(
        DataError, match=r"holds a pickle \(weight_0\), which is code, and TRAINBOX_SERVE_CODE is never"
    ):
        load(tmp_path, hidden)


def test_an_expression_that_would_be_evaluated_is_refused(exported: bytes) -> None:
    evil = "Symbol('s31', positive=True) if open('x', 'w') else 1"

    def put(document: Any) -> Any:
        text = json.dumps(document)
        return json.loads(text.replace("Symbol('s", f"{evil} + Symbol('s", 1))

    assert "an expression that is no size" in find_code(with_entry(exported, "models/model.json", put))


@pytest.mark.parametrize(
    "text", ["s0", "Symbol('s31', positive=True, integer=True)", "Max(1, s0 + 2)", "8*s0 <= 64", ""]
)
def test_sizes_are_plain(text: str) -> None:
    assert is_plain(text)


@pytest.mark.parametrize(
    "text", ["().x", "open('x')", "exec(s0)", "a.b", "__import__('os')", "Max('a b')", "[1]", "f()()"]
)
def test_other_expressions_are_not(text: str) -> None:
    assert not is_plain(text)


def test_machine_code_and_older_archives_are_told(exported: bytes) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/archive_format", "pt2")
        archive.writestr("archive/data/aotinductor/model/x.so", b"")
    assert find_code(content.getvalue()) == "machine code (x.so)"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("serialized_state_dict.pt", b"")
    assert "older torch.export" in find_code(content.getvalue())
    assert find_code(exported[:100]) == "what is no archive of torch.export"
