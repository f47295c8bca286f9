"""`load_former`: a network gets the weights of the channel `model`, and nothing in that file is run."""

import functools
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from trainbox import toolkit
from trainbox.contract.model_card import ModelCard, encode_card, features_of
from trainbox.errors import DataError
from trainbox.former import former_model
from trainbox.torch import load_former

Give = Callable[..., Path]


@pytest.fixture
def give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Give]:
    """Puts files into the `model.tar.gz` of the channel of this process's job."""
    _forget()
    monkeypatch.setenv("TRAINBOX_ROOT", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["train.py"])

    def pack(**files: bytes) -> Path:
        (tmp_path / "input/config").mkdir(parents=True)
        (tmp_path / "input/config/inputdataconfig.json").write_text(json.dumps({"model": {}}))
        archive = tmp_path / "input/data/model/model.tar.gz"
        archive.parent.mkdir(parents=True)
        with tarfile.open(archive, "w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return archive

    yield pack
    _forget()


def _forget() -> None:
    toolkit.current_job.cache_clear()
    former_model.cache_clear()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_a_network_gets_all_weights_and_statistics(give: Give) -> None:
    former, net = network(), network()
    former.state_dict()["1.running_mean"].add_(5)
    give(**{"model.pt": saved(former.state_dict())})
    digest = load_former(net)
    assert int(digest, 16) < 2**63
    for name, value in former.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)


def test_without_the_channel_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _forget()
    monkeypatch.setenv("TRAINBOX_ROOT", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["train.py"])
    assert load_former(network()) == ""
    _forget()


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("/tmp/of-a-forged-model",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: saved({"0.weight": _Runs()}), "posix.mkdir"),
        (lambda: pickle.dumps({"0.weight": _Runs()}, protocol=2), "nothing of it has run"),
        (lambda: saved(network()), "which no weights need"),
        (lambda: saved([torch.zeros(1)]), "holds no weights by name"),
        (lambda: saved({"0.weight": torch.zeros(1), "step": 3}), "holds no weights by name"),
        (lambda: saved(network().state_dict())[:-40], "model.pt of the channel model"),
        (lambda: b"", "model.pt of the channel model"),
        (lambda: saved(nn.Linear(3, 2).state_dict()), "0.weight is missing; 0.bias is missing"),
        (
            lambda: saved(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)).state_dict()),
            "float32 [2, 4], expected float32",
        ),
    ],
)
def test_what_is_no_weights_of_this_network_is_refused(give: Give, content: Callable[[], bytes], said: str) -> None:
    give(**{"model.pt": content()})
    with pytest.raises(DataError) as caught:
        load_former(network())
    assert said in str(caught.value)
    assert not Path("/tmp/of-a-forged-model").exists()


def test_columns_are_compared_by_the_names_on_the_card(give: Give) -> None:
    card = ModelCard(framework="pytorch", algorithm="perceptron", objective="regression", features=features_of("abc"))
    give(**{"model.pt": saved(network().state_dict()), "trainbox/model.json": encode_card(card)})
    assert load_former(network(), ("a", "b", "c"))
    assert load_former(network(), ("f0", "f1", "f2")), "without a header the place counts"
    with pytest.raises(DataError, match="calls feature 2 'b', channel train calls it 'c'"):
        load_former(network(), ("a", "c", "b"))


def test_an_archive_that_leads_out_of_itself_is_refused(give: Give, tmp_path: Path) -> None:
    give(**{"../model.pt": saved(network().state_dict())})
    with pytest.raises(DataError, match="lies outside of it"):
        load_former(network())
    assert not (tmp_path / "input/data/model.pt").exists()


def test_the_files_of_a_model_may_lie_there_without_an_archive(give: Give) -> None:
    archive = give(unused=b"")
    archive.unlink()
    (archive.parent / "model.pt").write_bytes(saved(network().state_dict()))
    assert former_model() == archive.parent
    assert load_former(network())
    for each in (functools.partial(archive.write_bytes, b""), (archive.parent / "model.pt").unlink):
        each()
        former_model.cache_clear()
        with pytest.raises(DataError):
            load_former(network())
