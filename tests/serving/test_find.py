"""Which model is served: the user's module, ours by its card, or a foreign one that is alone; else all is listed."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.frozen.fixtures import FIXTURES, about, predict
from tests.support.boosters import train
from trainbox.contract.hosting import Hosting, read_hosting
from trainbox.contract.model_card import CARD_FILE, ModelCard, encode_card, features_of, read_card
from trainbox.errors import DataError, ProgramError
from trainbox.serving.models.find import FoundModel, find_model, list_model, load
from trainbox.serving.models.self_test import self_test


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # `load` sets it


def hosting(root: Path, **variables: str) -> Hosting:
    return read_hosting({"TRAINBOX_ROOT": str(root), **variables})


def place(root: Path, contents: Mapping[str, str | bytes]) -> None:
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def find(root: Path, **variables: str) -> FoundModel:
    given = hosting(root, **variables)
    return find_model(given, list_model(given))


def booster(form: str = "ubj") -> bytes:
    return bytes(train("binary:logistic")[0].save_raw(form))


def card(**fields: object) -> bytes:
    given = {
        "framework": "xgboost",
        "algorithm": "xgboost",
        "objective": "binary:logistic",
        "features": features_of(["f0", "f1", "f2", "f3"]),
    }
    return encode_card(msgspec.convert({**given, **fields}, ModelCard))


PICKLED = pickle.dumps({"a": 1})


def torchscript(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/code/__torch__.py", b"")
    return path.read_bytes()


def test_a_model_of_ours_is_found_by_its_card(tmp_path: Path) -> None:
    place(tmp_path / "model", {"xgboost-model": b"{L", CARD_FILE: card(), "model.tar.gz": b"x", ".DS_Store": b"x"})
    found = find(tmp_path)
    assert (found.framework, found.form, found.files, found.notes) == ("xgboost", "xgboost", ("xgboost-model",), ())
    assert found.card is not None
    assert found.card.objective == "binary:logistic"


def test_the_models_of_folds_are_one_in_their_order(tmp_path: Path) -> None:
    names = [f"xgboost-model-{fold}" for fold in range(11)]
    place(tmp_path / "model", {**dict.fromkeys(names, b"{L"), CARD_FILE: card(files=dict.fromkeys(sorted(names), ""))})
    found = find(tmp_path, SAGEMAKER_INFERENCE_ENSEMBLE="false")
    assert list(found.files) == names
    assert found.use_ensemble is False
    (tmp_path / "model" / CARD_FILE).unlink()
    assert list(find(tmp_path).files) == names


FOREIGN: dict[str, tuple[bytes, str, str]] = {
    "xgboost-model": (b"{L", "xgboost", "xgboost"),
    "m.ubj": (b"{L", "xgboost", "xgboost"),
    "m.bst": (b"{L", "xgboost", "xgboost"),
    "m.json": (b'{"learner":{', "xgboost", "xgboost"),
    "model.json": (b'{"learner":{', "xgboost", "xgboost"),
    "m.skops": (b"PK", "scikit-learn", "skops"),
    "m.joblib": (PICKLED, "scikit-learn", "pickle"),
    "m.pkl": (PICKLED, "scikit-learn", "pickle"),
    "m.pt2": (b"PK", "pytorch", "torch-export"),
    "m.onnx": (b"\x08\x08", "onnx", "onnx"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_model_is_served_if_it_is_alone(name: str, tmp_path: Path) -> None:
    content, framework, form = FOREIGN[name]
    beside = {"config.json": b"{}", "README.md": b"", "metrics.json": b'{"rmse": 1}', "model.tar.gz": b"x"}
    place(tmp_path / "model", {name: content, **beside})
    found = find(tmp_path)
    assert (found.framework, found.form, found.files) == (framework, form, (name,))
    assert found.card is None


def test_torchscript_is_told_from_weights(tmp_path: Path) -> None:
    place(tmp_path / "model", {"net.pth": torchscript(tmp_path / "x")})
    assert find(tmp_path).form == "torchscript"
    place(tmp_path / "model", {"net.pth": b"weights"})
    with pytest.raises(DataError, match=r"no model to serve: it holds net.pth"):
        find(tmp_path)


def test_several_models_are_listed_and_none_is_chosen(tmp_path: Path) -> None:
    place(tmp_path / "model", {"a.ubj": b"{L", "b.skops": b"PK", "code/x.txt": b""})
    with pytest.raises(DataError, match=r"has several models: a.ubj, b.skops"):
        find(tmp_path)
    place(tmp_path / "model", {CARD_FILE: card(files={"a.ubj": ""})})
    assert find(tmp_path).files == ("a.ubj",)


def test_what_there_is_is_listed_where_no_model_is(tmp_path: Path) -> None:
    place(tmp_path / "model", {"1/saved_model.pb": b"", "data.csv": b"", **{f"z{n:02}": b"" for n in range(40)}})
    (tmp_path / "model/model.joblib").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match=r"it holds data.csv, z00, .* and 23 more"):
        find(tmp_path)
    listing = list_model(hosting(tmp_path))
    assert listing.others == ("1/saved_model.pb", "model.joblib (a link)")


def test_a_link_to_a_model_is_not_followed(tmp_path: Path) -> None:
    place(tmp_path, {"elsewhere": booster()})
    (tmp_path / "model").mkdir()
    (tmp_path / "model/xgboost-model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"it holds xgboost-model \(a link\)"):
        find(tmp_path)


def test_an_empty_directory_in_the_place_of_a_model_is_listed(tmp_path: Path) -> None:
    (tmp_path / "model" / "xgboost-model").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has no model to serve: it holds xgboost-model \(an empty directory\)"):
        find(tmp_path)


def test_a_model_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/model cannot be read: No such file"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["m.joblib", "m.pkl", "xgboost-model", "net.pt"])
def test_a_pickle_is_told_and_refused_where_no_code_may_run(name: str, tmp_path: Path) -> None:
    content = torchscript(tmp_path / "x") if name == "net.pt" else PICKLED
    place(tmp_path / "model", {name: content})
    (note,) = find(tmp_path).notes
    assert note.startswith(f"{name} is a")
    with pytest.raises(DataError, match="TRAINBOX_SERVE_CODE is never"):
        find(tmp_path, TRAINBOX_SERVE_CODE="never")


def test_skops_is_taken_in_place_of_the_pickle_beside_it(tmp_path: Path) -> None:
    place(tmp_path / "model", {"model.skops": b"PK", "model.joblib": PICKLED})
    place(tmp_path / "model", {CARD_FILE: card(framework="scikit-learn", algorithm="x", objective="regression")})
    found = find(tmp_path, TRAINBOX_SERVE_CODE="never")
    assert (found.form, found.files, found.notes) == ("skops", ("model.skops",), ())


# ---- the user's module ----

LAYOUTS: dict[str, tuple[str, dict[str, str]]] = {
    "code of the archive": ("model/code/inference.py", {}),
    "beside the model": ("model/inference.py", {}),
    "SDK v2, repacked": (
        "model/code/serve_it.py",
        {"SAGEMAKER_PROGRAM": "serve_it.py", "SAGEMAKER_SUBMIT_DIRECTORY": "ROOT/model/code"},
    ),
    "SDK v2, by file": (
        "elsewhere/serve_it.py",
        {"SAGEMAKER_PROGRAM": "serve_it.py", "SAGEMAKER_SUBMIT_DIRECTORY": "file://ROOT/elsewhere"},
    ),
    "fetched from S3": (
        "code/serve_it.py",
        {"SAGEMAKER_PROGRAM": "serve_it.py", "SAGEMAKER_SUBMIT_DIRECTORY": "s3://bucket/sourcedir.tar.gz"},
    ),
    "SDK v3, code mounted at the model's place": (
        "model/inference.py",
        {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_SUBMIT_DIRECTORY": "ROOT/model/code"},
    ),
    "without its suffix": ("model/code/serve_it.py", {"SAGEMAKER_PROGRAM": "serve_it"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_users_module_is_found_in_every_layout(layout: str, tmp_path: Path) -> None:
    path, variables = LAYOUTS[layout]
    place(tmp_path, {path: "def model_fn(model_dir): ...\n", "model/weights.bin": b""})
    variables = {name: value.replace("ROOT", str(tmp_path)) for name, value in variables.items()}
    found = find(tmp_path, **variables)
    assert found.module is not None
    assert (found.module.path, found.module.hooks) == (tmp_path / path, ("model_fn",))
    assert found.framework is None
    assert found.notes == (f"the model brings code, which runs with all rights of the container: {tmp_path / path}",)
    with pytest.raises(ProgramError, match="the model brings code"):
        find(tmp_path, TRAINBOX_SERVE_CODE="never", **variables)


def test_hooks_that_the_module_lacks_are_ours_also_the_model(tmp_path: Path) -> None:
    place(
        tmp_path / "model", {"code/inference.py": "output_fn = str\nif 1:\n    from x import input_fn as predict_fn\n"}
    )
    with pytest.raises(DataError, match=r"it holds code/inference\.py"):
        find(tmp_path)
    place(tmp_path / "model", {"xgboost-model": b"{L", CARD_FILE: card()})
    found = find(tmp_path)
    assert found.framework == "xgboost"
    assert found.module is not None
    assert found.module.hooks == ("predict_fn", "output_fn")


def test_a_module_without_hooks_is_told_and_not_used(tmp_path: Path) -> None:
    place(tmp_path / "model", {"code/train.py": "def main(): ...\n", "xgboost-model": b"{L"})
    found = find(tmp_path, SAGEMAKER_PROGRAM="train.py", TRAINBOX_SERVE_CODE="never")
    assert found.module is None
    assert "train.py has none of model_fn, " in found.notes[0]


def test_a_program_that_is_not_there_is_told_with_all_places(tmp_path: Path) -> None:
    place(tmp_path / "model", {"src/inference.py": "def model_fn(d): ...\n"})
    with pytest.raises(ProgramError) as caught:
        find(tmp_path, SAGEMAKER_PROGRAM="inference.py")
    assert f"looked for {tmp_path}/model/code/inference.py, {tmp_path}/code/inference.py" in caught.value.message
    assert "holds src/inference.py" in caught.value.hint


def test_a_program_that_sdk_v3_names_in_any_case_may_be_missing(tmp_path: Path) -> None:
    place(tmp_path / "model", {"xgboost-model": b"{L", CARD_FILE: card()})
    local = {"LOCAL_PYTHON": "3.12.1", "SAGEMAKER_SUBMIT_DIRECTORY": f"{tmp_path}/model/code"}
    found = find(tmp_path, SAGEMAKER_PROGRAM="inference.py", **local)
    assert (found.framework, found.module) == ("xgboost", None)
    assert "there is no inference.py" in found.notes[0]
    with pytest.raises(ProgramError, match=r"SAGEMAKER_PROGRAM=mine\.py is not there"):
        find(tmp_path, SAGEMAKER_PROGRAM="mine.py", **local)


def test_transform_fn_beside_what_it_stands_for_is_refused_at_the_start(tmp_path: Path) -> None:
    place(tmp_path / "model", {"inference.py": "def transform_fn(): ...\ndef input_fn(): ...\ndef output_fn(): ...\n"})
    with pytest.raises(ProgramError, match="defines transform_fn and also input_fn, output_fn"):
        find(tmp_path)


def test_a_module_that_is_no_python_is_told_with_its_line(tmp_path: Path) -> None:
    place(tmp_path / "model", {"inference.py": "x = 1\ndef model_fn(:\n"})
    with pytest.raises(ProgramError, match=r"inference.py is not a Python module: .*, line 2"):
        find(tmp_path)


# ---- loaded ----


def test_a_model_of_an_earlier_version_answers_as_it_did(tmp_path: Path) -> None:
    model = FIXTURES / "xgboost/model"
    place(tmp_path / "model", {path.name: path.read_bytes() for path in model.iterdir()})
    ours = load(find(tmp_path))
    rows = np.array([[0.5, -0.25, 1, 2], [-1, -1, 0, 3]], np.float32)
    assert len(ours.predict(rows)) == 2
    assert predict(model)["xgboost-model"].tolist() == pytest.approx(about("xgboost")["predictions"]["xgboost-model"])
    assert self_test(ours) is None


def with_samples(directory: Path, prediction: float) -> None:
    content, samples = booster(), [{"values": {"f0": 0.5, "f2": -1.0}, "prediction": prediction}]
    place(directory, {"xgboost-model": content, CARD_FILE: card(samples=samples)})


def test_the_sample_rows_of_the_card_are_answered_before_any_request(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with_samples(tmp_path / "model", 0.0)
    ours = load(find(tmp_path))
    right = float(ours.predict(np.array([[0.5, np.nan, -1.0, np.nan]], np.float32))[0])
    error = self_test(ours)
    assert error is not None
    assert f"sample row 1: the model predicts {right!r}, and its card 0.0" in error.message
    with_samples(tmp_path / "model", right)
    assert self_test(load(find(tmp_path))) is None
    assert capfd.readouterr().err == ""
    with_samples(tmp_path / "model", float(np.nextafter(np.float32(right), np.float32(1))))
    assert self_test(load(find(tmp_path))) is None
    assert "the last bits depend on the processor" in capfd.readouterr().err
    assert read_card(tmp_path / "model").samples
