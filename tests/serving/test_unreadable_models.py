"""A model that may not be read: `serve` ends with one error, which says which file and what to do, and no traceback."""

import os
from pathlib import Path

import pytest

from tests.support.rights import WITH_RIGHTS_OF_MODES, needs_modes
from tests.support.servers import ServeProcess

pytestmark = pytest.mark.process


def close(path: Path, content: bytes = b"{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0)


def end_of(root: Path, code: int) -> str:
    with ServeProcess(root, obedient=None, prefix=WITH_RIGHTS_OF_MODES) as server:
        assert server.wait() == code, server.log
        assert "Traceback" not in server.log
        return server.log


@needs_modes
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("xgboost-model", 7),
        ("code/inference.py", 3),
        pytest.param("a.json", 7, marks=pytest.mark.long),
        pytest.param("net.pt", 7, marks=pytest.mark.long),
        pytest.param("model.skops", 7, marks=pytest.mark.long),
        pytest.param("model.pt2", 7, marks=pytest.mark.long),
        pytest.param("model.onnx", 7, marks=pytest.mark.long),
        pytest.param("trainbox/model.json", 7, marks=pytest.mark.long),
    ],
)
def test_a_file_that_may_not_be_read_is_named_and_what_to_do(name: str, code: int, tmp_path: Path) -> None:
    close(tmp_path / "model" / name)
    log = end_of(tmp_path, code)
    assert f"{tmp_path}/model/{name} cannot be read: Permission denied\n" in log
    assert log.count("trainbox: hint: ") == 2  # of the loader, and of the end
    assert f"trainbox: hint: allow uid {os.geteuid()} to use it" in log


@needs_modes
def test_a_directory_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "model" / "trainbox").mkdir(parents=True, mode=0)
    assert f"{tmp_path}/model/trainbox cannot be read: Permission denied\n" in end_of(tmp_path, 7)


def test_the_traceback_of_a_model_fn_that_fails_is_in_the_log(tmp_path: Path) -> None:
    code = tmp_path / "model" / "code"
    code.mkdir(parents=True)
    (code / "inference.py").write_text("import json\n\n\ndef model_fn(place):\n    return json.loads('x')\n")
    with ServeProcess(tmp_path, obedient=None) as server:
        assert server.wait() == 3
        assert server.log.count("Traceback (most recent call last)") == 1
        assert "json/decoder.py" in server.log
        assert "FAILED: ClientError: ProgramError: model_fn: JSONDecodeError: Expecting value" in server.log
