"""Nothing that we ship or build with turns bytes into code: no pickle, no eval, no shell, but what is listed with why.

Read from the syntax, so it sees only what stands there; what libraries do underneath, the tests of their uses see.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.syntax import dotted, nodes

ROOT = Path(__file__).parents[2]
ROOMS = ("container", "train_scripts", "tools")
#: Modules whose only use is to make objects or code of bytes.
MODULES = frozenset({"cloudpickle", "dill", "marshal", "pickle", "shelve"})
CALLS = frozenset(
    {
        "compile",
        "eval",
        "exec",
        "joblib.dump",
        "joblib.load",
        "numpy.load(allow_pickle)",
        "os.popen",
        "os.system",
        "pandas.read_pickle",
        "shutil.unpack_archive",
        "subprocess.getoutput",
        "subprocess.getstatusoutput",
        "tempfile.mktemp",
        "torch.load",
        "yaml.full_load",
        "yaml.load",
        "yaml.load_all",
        "yaml.unsafe_load",
    }
)
#: A file without any of these words uses nothing of that, by whatever name.
WORDS = re.compile(
    r"\b(?:allow_pickle|extractall|shell|verify|"
    + "|".join(sorted({*MODULES, *(name.rpartition(".")[2].partition("(")[0] for name in CALLS)}))
    + r")\b"
)
#: By file: what it uses of these, and why that is right.
ALLOWED: dict[str, dict[str, str]] = {
    "container/trainbox/sklearn/model.py": {
        "joblib.dump": "writes model.joblib, which scikit-learn's users ask for",
        "joblib.load": "reads the model that it has just written itself, to say what that predicts",
    },
    "container/trainbox/sklearn/predictor.py": {
        "joblib.load": "serves a model that is a pickle, which one line says and TRAINBOX_SERVE_CODE=never refuses",
    },
    "container/trainbox/sklearn/repeatable.py": {
        "import pickle": "a Pickler that goes through a model and clears its trees; nothing is read",
    },
    "container/trainbox/torch/checkpoints/sharded/dcp.py": {
        "import pickle": "names the errors of torch.load with weights_only=True",
    },
    "container/trainbox/torch/checkpoints/sharded/dcp_index.py": {
        "import pickle": "an Unpickler that makes records of a few names and refuses all others",
    },
    "container/trainbox/torch/checkpoints/pickles.py": {
        "import pickle": "an Unpickler that notes names and makes nothing of them",
    },
    "container/trainbox/torch/networks/former.py": {
        "import pickle": "names the errors of torch.load with weights_only=True",
    },
    "container/trainbox/xgboost/old_models.py": {
        "import pickle": "an Unpickler that takes the content of a Booster and refuses all other names",
    },
    "tools/bench_forest.py": {"joblib.load": "reads the model that it has just had written itself"},
    "tools/bench_serving/inside.py": {"joblib.load": "reads the model that it has just had written itself"},
    "tools/fuzz_parsers/corpus.py": {
        "import pickle": "writes the pickled boosters that the reader of old models is fed"
    },
    "tools/fuzz_faults/jobs.py": {"joblib.load": "reads the model that it has just had written itself"},
}


def uses(tree: Sequence[ast.AST]) -> Iterator[str]:
    """What a file uses of what is dangerous."""
    names: dict[str, str] = {}
    for node in tree:
        if isinstance(node, ast.Import):
            names.update({alias.asname or alias.name.partition(".")[0]: _bound(alias) for alias in node.names})
            yield from (f"import {top}" for alias in node.names if (top := alias.name.partition(".")[0]) in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
            if node.module.partition(".")[0] in MODULES:
                yield f"import {node.module.partition('.')[0]}"
    for node in tree:
        if isinstance(node, ast.Call):
            yield from _of_call(node, names)


def _bound(alias: ast.alias) -> str:
    return alias.name if alias.asname else alias.name.partition(".")[0]


def _of_call(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    given = {each.arg: each.value for each in node.keywords}

    def says(name: str, value: object) -> bool:
        found = given.get(name)
        return isinstance(found, ast.Constant) and found.value == value

    first, _, rest = dotted(node.func).partition(".")
    called = ".".join(filter(None, (names.get(first, first), rest)))
    if called == "torch.load" and says("weights_only", value=True):
        return
    if called in CALLS:
        yield called
    if called in {"numpy.load", "np.load"} and "allow_pickle" in given and not says("allow_pickle", value=False):
        yield "numpy.load(allow_pickle)"
    if "shell" in given and not says("shell", value=False):
        yield "shell=True"
    if "verify" in given and not says("verify", value=True):
        yield "verify=False"
    if isinstance(node.func, ast.Attribute) and node.func.attr == "extractall" and not says("filter", value="data"):
        yield "extractall"


def found() -> dict[str, set[str]]:
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    every = {str(path.relative_to(ROOT)): set(uses(nodes(path))) for path in files if WORDS.search(path.read_text())}
    return {file: what for file, what in every.items() if what}


def test_nothing_turns_bytes_into_code_but_what_is_listed() -> None:
    assert found() == {file: set(reasons) for file, reasons in ALLOWED.items()}
    assert all(len(reason) > 20 for reasons in ALLOWED.values() for reason in reasons.values())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import pickle\npickle.loads(b'')", {"import pickle"}),
        ("from pickle import Unpickler as U", {"import pickle"}),
        ("def f():\n    import shelve", {"import shelve"}),
        ("from joblib import load, Parallel\nload(f)\nParallel(2)", {"joblib.load"}),
        ("import torch\ntorch.load(f)", {"torch.load"}),
        ("import torch\ntorch.load(f, weights_only=False)", {"torch.load"}),
        ("from torch import load as read\nread(f)", {"torch.load"}),
        ("import torch\ntorch.load(f, weights_only=True)", set()),
        ("import yaml\nyaml.load(f)", {"yaml.load"}),
        ("import yaml\nyaml.safe_load(f)", set()),
        ("eval('1')\nexec('1')", {"eval", "exec"}),
        ("import re\nre.compile('1')", set()),
        ("import subprocess as s\ns.run('ls', shell=True)\ns.getoutput('ls')", {"shell=True", "subprocess.getoutput"}),
        ("from os import system\nsystem('ls')", {"os.system"}),
        ("tar.extractall(path)", {"extractall"}),
        ("tar.extractall(path, filter='data')", set()),
        ("tar.extractall(path, filter='fully_trusted')", {"extractall"}),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", {"numpy.load(allow_pickle)"}),
        ("import numpy as np\nnp.load(f, allow_pickle=False)", set()),
        ("import requests\nrequests.get(u, verify=False)", {"verify=False"}),
    ],
)
def test_the_rule_sees_what_it_is_for(text: str, what: set[str]) -> None:
    assert set(uses(tuple(ast.walk(ast.parse(text))))) == what
    assert WORDS.search(text) or not what
