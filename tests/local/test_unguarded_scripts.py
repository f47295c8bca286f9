"""`trainbox describe` and `trainbox metrics` never train: not even a script that has no main guard."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainbox.contract import params
from trainbox.errors import RunError
from trainbox.local.scripts.declarations import find_training_module, plan_reading
from trainbox.local.scripts.script_module import find_metrics, find_params, load_script
from trainbox.supervisor.program.choice import bundled_scripts

HEAD = '''
from pathlib import Path
from typing import Annotated
import msgspec, trainbox
from trainbox import Metric

def work(*_):
    """Training, which leaves a trace."""
    Path(__file__).with_name("trained").write_text("yes")
    return 7

class Params(msgspec.Struct, frozen=True, kw_only=True):
    epochs: Annotated[int, msgspec.Meta(ge=1)] = 10

AUC = Metric("validation:auc", "maximize")
'''
#: Behind the head: training without a guard, of every kind, and what `trainbox metrics` finds all the same.
TRAINING = {
    "a function": "work()",
    "its result": "model = work()",
    "the contract": "params = trainbox.hyperparameters(Params)\nfor epoch in range(params.epochs):\n    work()",
    "a session": "from trainbox.torch import session\nwith session() as run:\n    work()",
    "a loop": "for epoch in range(3):\n    work()",
    "a loop that waits": "while not work():\n    pass",
    "a branch": "if True:\n    work()",
    "a try": "try:\n    work()\nexcept ValueError:\n    pass",
    "a library": "class Model:\n    def fit(self): work()\nModel().fit()",
    "a condition": "assert work()",
    "a comprehension": "scores = [work() for _ in range(3)]",
    "a callback": "scores = list(map(work, range(3)))",
    "a decorator": "@work\ndef train(): pass",
    "a body of a class": "class Trained:\n    model = work()",
    "a function of a function": "def main():\n    work()\nmain()",
    "a lambda": "(lambda: work())()",
    "a guard that is none": "if __name__ != '__main__':\n    work()",
    "the other branch of a guard": "if __name__ == '__main__':\n    pass\nelse:\n    work()",
    "beside a guard": "def main():\n    work()\nmain()\nif __name__ == '__main__':\n    main()",
    "an open file": "with open(Path(__file__).with_name('trained'), 'w') as file:\n    file.write('yes')",
    "a path": "Path(__file__).with_name('trained').write_text('yes')",
    "before the metrics": "work()\nLOSS = Metric('train:loss', 'minimize')",
}


@pytest.fixture
def write(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    def write_script(text: str) -> Path:
        path = tmp_path / f"{re.sub(r'[^a-zA-Z0-9]', '_', request.node.name)}.py"
        path.write_text(text)
        return path

    return write_script


@pytest.fixture(autouse=True)
def forget_modules() -> object:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("trainbox_script_", "beside")):
            del sys.modules[name]


@pytest.mark.parametrize("training", TRAINING.values(), ids=TRAINING.keys())
def test_what_is_declared_is_found_and_nothing_trains(write: Callable[[str], Path], training: str) -> None:
    path = write(f"{HEAD}{training}\n")
    found = find_params(load_script(path, metrics=False))
    assert [field.name for field in params.fields(found)] == ["epochs"]
    names = [metric.name for metric in find_metrics(load_script(path), {})]
    assert names == ["validation:auc", *(["train:loss"] if "train:loss" in training else [])]
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name]


def test_all_that_declarations_are_made_of_is_there(write: Callable[[str], Path]) -> None:
    path = write(
        "from __future__ import annotations\n"
        "import os\n"
        "from typing import TYPE_CHECKING, Annotated\n"
        "try:\n    import not_installed_here\nexcept ImportError:\n    not_installed_here = None\n"
        "import msgspec\nimport trainbox as tb\n"
        "from trainbox.metrics import Metric as M\n"
        "print('begins', open(__file__).readline())\n"
        "LEAST = 1\nShare = Annotated[float, msgspec.Meta(ge=0, lt=LEAST)]\n"
        "def default():\n    return 0.5\n"
        "class Base(msgspec.Struct, frozen=True, kw_only=True):\n    dropout: 'Share' = default()\n"
        "class Params(Base, frozen=True, kw_only=True):\n    channels: int = os.cpu_count() and 3\n"
        "def make(name):\n    return M(name, 'minimize')\n"
        "NAMES = []\nNAMES.append('f1')\n"
        "SCORES = {}\nfor name in ('a', 'b'):\n    SCORES[name] = tb.Metric(name, 'maximize')\n"
        "ALL = [*SCORES.values(), make('loss'), *[M(name, 'maximize') for name in NAMES]]\n"
        "data = open('/dev/null').read()\n"
    )
    module = load_script(path)
    assert {field.name: field.default for field in params.fields(find_params(module))} == {
        "dropout": "0.5",
        "channels": "3",
    }
    assert [metric.name for metric in find_metrics(module, {})] == ["a", "b", "loss", "f1"]
    assert not hasattr(module, "data")


def test_metrics_that_depend_on_the_hyperparameters_are_asked_for(write: Callable[[str], Path]) -> None:
    path = write(
        f"{HEAD}KINDS = ('auc', 'f1')\n"
        "def metrics(params):\n    return [Metric(f'validation:{kind}', 'maximize') for kind in KINDS]\n"
        "metrics(trainbox.hyperparameters(Params))\nwork()\n"
    )
    assert [metric.name for metric in find_metrics(load_script(path), {})] == ["validation:auc", "validation:f1"]


def test_what_is_needed_and_may_train_is_an_error_that_names_the_line(write: Callable[[str], Path]) -> None:
    path = write(f"{HEAD}params = trainbox.hyperparameters(Params)\nF1 = Metric(f'{{params.epochs}}:f1', 'maximize')\n")
    line = HEAD.count("\n") + 1
    message = rf"needs? line {line}, which may train: params = trainbox\.hyperparameters\(Params\)"
    with pytest.raises(RunError, match=message) as caught:
        load_script(path)
    assert "__main__" in caught.value.hint
    assert load_script(path, metrics=False).Params, "Params needs none of that"


def test_a_module_beside_the_script_does_not_train_either(write: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("import beside_both\n")
    (tmp_path / "beside_both.py").write_text("from sklearn.svm import SVC\nmodel = SVC().fit([[0], [1]], [0, 1])\n")
    for script in (f"import beside_it\n{HEAD}", f"{HEAD}import beside_it\nif __name__ == '__main__':\n    work()\n"):
        with pytest.raises(RunError, match=r"imports beside_both\.py:2, which would train while it is imported"):
            load_script(write(script))
    assert load_script(write(f"import beside_it\n{HEAD}work()\n")).Params, "it is not needed for what is declared"


@pytest.mark.parametrize(
    "text",
    [
        "import logging\nlogging.basicConfig()\nLOG = logging.getLogger(__name__)\n",
        "import sys\nsys.path.insert(0, 'lib')\n",
        "if __name__ == '__main__':\n    raise SystemExit(main())\n",
        "if '__main__' == __name__:\n    main()\n",
        "import torch\ntorch.backends.cudnn.enable(True)\ndef main(): pass\nif __name__ == '__main__':\n    main()\n",
        "with patched():\n    import torch\nif __name__ == '__main__':\n    main()\n",
        "import math\nLIMIT = math.log(2)\n",
    ],
)
def test_a_script_that_only_declares_or_has_a_guard_is_imported_as_it_is(text: str) -> None:
    assert plan_reading(ast.parse(text), "t.py", metrics=True).whole


def test_bundled_scripts_have_a_guard_and_are_imported_as_they_are() -> None:
    for path in bundled_scripts().values():
        tree = ast.parse(path.read_text())
        assert plan_reading(tree, path.name, metrics=True).whole, path
        assert not find_training_module(tree.body, path.parent), path


@pytest.mark.process
def test_the_verbs_show_what_an_unguarded_script_declares(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(f"{HEAD}params = trainbox.hyperparameters(Params)\nwork()\n")
    answers = [
        subprocess.run(
            [sys.executable, "-m", "trainbox", verb, "train.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout
        for verb in ("describe", "metrics")
    ]
    assert answers[0].splitlines()[1].split() == ["epochs", "int", "10", ">=", "1"]
    assert [each["Name"] for each in json.loads(answers[1])] == ["validation:auc"]
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"], "and nothing compiled is left"
