"""A network of PyTorch behind a program that was written for SageMaker's PyTorch container: its name, places and hooks.

In own words what the tests of https://github.com/aws/sagemaker-pytorch-inference-toolkit serve: a small network for
digits, whose weights lie beside `code/`, asked with arrays of four dimensions and with flat rows.
"""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.serving.test_answer import npy
from tests.support.servers import ServeProcess

pytestmark = pytest.mark.process

PROGRAM = """
import os
import torch
from layers import Net

def model_fn(model_dir):
    print(f"model_fn in {os.getpid()}", flush=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Net()
    with open(os.path.join(model_dir, "model.pth"), "rb") as file:
        model.load_state_dict(torch.load(file, map_location=device))
    return model.to(device).eval()
"""
LAYERS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.filter = torch.nn.Conv2d(1, 2, 5)
        self.out = torch.nn.Linear(2 * 24 * 24, 10)

    def forward(self, images):
        images = images.reshape(-1, 1, 28, 28)
        return torch.log_softmax(self.out(self.filter(images).relu().flatten(1)), dim=1)
"""
PREDICT = """
def predict_fn(images, model):
    assert isinstance(images, torch.Tensor) and images.dtype == torch.float32
    with torch.no_grad():
        return model(images)
"""


@pytest.mark.parametrize("predict", [pytest.param("", marks=pytest.mark.long), PREDICT])
def test_a_network_with_hooks_of_sagemakers_pytorch_container_answers_as_itself(predict: str, tmp_path: Path) -> None:
    code = tmp_path / "model" / "code"
    (code / "lib").mkdir(parents=True)
    (code / "mnist.py").write_text(PROGRAM + predict)
    (code / "lib" / "layers.py").write_text(LAYERS)
    defined: dict[str, type[torch.nn.Module]] = {}
    exec(compile(LAYERS, "layers.py", "exec"), defined)
    torch.manual_seed(1)
    network = defined["Net"]()
    torch.save(network.state_dict(), tmp_path / "model" / "model.pth")
    images = np.random.default_rng(1).random((3, 1, 28, 28), np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    flat = "".join(",".join(map(str, row)) + "\n" for row in images.reshape(3, -1).tolist())
    bodies = {
        "application/json": json.dumps(images.tolist()).encode(),
        "application/x-npy": npy(images),
        "text/csv": flat.encode(),
    }
    variables = {"SAGEMAKER_PROGRAM": "mnist.py", "SAGEMAKER_MODEL_SERVER_WORKERS": "2"}
    with ServeProcess(tmp_path, variables, obedient=None) as server:
        server.until_ready()
        for content_type, body in bodies.items():
            given = {"Content-Type": content_type}
            as_json = server.invoke(body, {**given, "Accept": "application/json"})
            np.testing.assert_allclose(json.loads(as_json.body), expected, rtol=1e-5)
            as_array = server.invoke(body, {**given, "Accept": "application/x-npy"})
            np.testing.assert_allclose(np.load(io.BytesIO(as_array.body)), expected, rtol=1e-5)
            as_text = server.invoke(body, {**given, "Accept": "text/csv"})
            np.testing.assert_allclose(np.loadtxt(io.BytesIO(as_text.body), delimiter=","), expected, rtol=1e-5)
        assert json.loads(server.invoke(bodies["application/json"]).body) == json.loads(as_json.body)
        assert server.invoke(b"?", {"Content-Type": "image/png"}).status == 415
        assert server.invoke(bodies["text/csv"], {"Content-Type": "text/csv", "Accept": "image/png"}).status == 406
        assert server.log.count("model_fn in ") == 1  # both workers are forks of the process that has called it
        assert server.stop() == 0
