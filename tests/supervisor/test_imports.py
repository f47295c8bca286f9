"""Whether a program imports trainbox.torch, told from its source alone."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from trainbox.supervisor.program.imports import MOST_BYTES, MOST_FILES, find_import

SESSION = "from trainbox.torch import session\n"


def found(root: Path, files: Mapping[str, str | bytes], entry: str = "train.py") -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return find_import(root / entry, root, "trainbox.torch")


@pytest.mark.parametrize(
    "text",
    [
        SESSION,
        "import trainbox.torch\n",
        "import os, trainbox.torch as tt\n",
        "from trainbox import torch\n",
        "from trainbox.torch.start_session import session\n",
        "import trainbox.torch.batches\n",
        "def main():\n    from trainbox.torch import session\nmain()\n",
        "if __name__ == '__main__':\n    import trainbox.torch\n",
        "try:\n    import apex\nexcept ImportError:\n    from trainbox.torch import session\n",
        "class A:\n    async def f(self):\n        import trainbox.torch\n",
        "# -*- coding: latin-1 -*-\nx = '\xe4'\n".encode("latin-1") + SESSION.encode(),
        b"\xef\xbb\xbf" + SESSION.encode(),
        "x = '\\d'\n" + SESSION,
        "match 1:\n    case 1:\n        import trainbox.torch\n",
    ],
)
def test_an_import_is_found_wherever_it_stands_in_the_program(tmp_path: Path, text: str | bytes) -> None:
    assert found(tmp_path, {"train.py": text}) == "train.py"


@pytest.mark.parametrize(
    "text",
    [
        "import trainbox\n",
        "import torch\n",
        "import trainbox.torchvision\n",
        "from .trainbox import torch\n",
        "from trainbox import toolkit\n",
        "# from trainbox.torch import session\n",
        "'''\nfrom trainbox.torch import session\n'''\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trainbox.torch import Session\n",
        "import typing\nif typing.TYPE_CHECKING:\n    from trainbox.torch import Session\n",
        "def broken(:\n" + SESSION,
        SESSION.encode() + b"\0",
        b"\xff\xfe" + SESSION.encode(),
        "",
        "(" * 5000 + SESSION,
        "-" * 100_000 + "1\n" + SESSION,
        f"import {'a' * 300}\nfrom {'b' * 300} import {'c' * 300}\n",
        f"if x{'.real' * 1500}:\n    pass\n",
    ],
)
def test_what_is_no_such_import_or_no_python_is_none(tmp_path: Path, text: str | bytes) -> None:
    assert found(tmp_path, {"train.py": text}) == ""


@pytest.mark.parametrize(
    ("files", "entry", "expected"),
    [
        ({"train.py": "import model\n", "model.py": SESSION}, "train.py", "model.py"),
        ({"train.py": "from model import fit\n", "model.py": SESSION}, "train.py", "model.py"),
        ({"train.py": "from lib import fit\n", "lib/fit.py": SESSION}, "train.py", "lib/fit.py"),
        ({"train.py": "import lib.a.b\n", "lib/__init__.py": SESSION, "lib/a/b.py": ""}, "train.py", "lib/__init__.py"),
        ({"train.py": "import a\n", "a.py": "import b\n", "b.py": "import a\n" + SESSION}, "train.py", "b.py"),
        ({"pkg/train.py": "from . import loop\n", "pkg/loop.py": SESSION}, "pkg/train.py", "pkg/loop.py"),
        ({"pkg/a/train.py": "from ..b.c import d\n", "pkg/b/c.py": SESSION}, "pkg/a/train.py", "pkg/b/c.py"),
        ({"pkg/train.py": "import pkg.loop\n", "pkg/loop.py": SESSION}, "pkg/train.py", "pkg/loop.py"),
        ({"scripts/train.py": "import loop\n", "scripts/loop.py": SESSION}, "scripts/train.py", "scripts/loop.py"),
        ({"train.py": "import lib\n", "src/lib/__init__.py": SESSION}, "train.py", "src/lib/__init__.py"),
        ({"train.py": "if x:\n    import a\n", "a.py": SESSION}, "train.py", "a.py"),
        ({"train.py": "with f():\n    import a\n", "a.py": SESSION}, "train.py", "a.py"),
    ],
)
def test_modules_of_the_code_that_the_program_imports_are_looked_into(
    tmp_path: Path, files: Mapping[str, str], entry: str, expected: str
) -> None:
    assert found(tmp_path, files, entry) == expected


@pytest.mark.parametrize(
    "files",
    [
        {"train.py": "", "model.py": SESSION},
        {"train.py": "def later():\n    import model\n", "model.py": SESSION},
        {"train.py": "import numpy\n"},
        {"train.py": "from ....... import a\n", "a.py": SESSION},
        {"train.py": "import a\n", "a.py": "import b  # " + "x" * MOST_BYTES + "\n" + SESSION},
    ],
)
def test_other_files_are_not(tmp_path: Path, files: Mapping[str, str]) -> None:
    assert found(tmp_path, files) == ""


def test_nothing_outside_of_the_code_is_read(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (tmp_path / "outside.py").write_text(SESSION)
    (code / "outside.py").symlink_to(tmp_path / "outside.py")
    (code / "cycle.py").symlink_to(code / "cycle.py")
    assert found(code, {"train.py": "import outside, cycle\n"}) == ""
    assert found(code, {"pkg/train.py": "from ... import outside\n"}, "pkg/train.py") == ""


def test_so_many_files_are_read_and_no_more(tmp_path: Path) -> None:
    chain = {f"m{number}.py": f"import m{number + 1}\n" for number in range(MOST_FILES + 10)}
    assert found(tmp_path, {"train.py": "import m0\n", **chain, f"m{MOST_FILES - 2}.py": SESSION}) != ""
    assert found(tmp_path, {f"m{MOST_FILES - 2}.py": f"import m{MOST_FILES - 1}\n"}) == ""
    assert found(tmp_path, {f"m{MOST_FILES + 5}.py": SESSION}) == ""


def test_nothing_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    text = f"open({str(marker)!r}, 'w')\n"
    assert found(tmp_path, {"train.py": text + "import model\n", "model.py": text + SESSION}) == "model.py"
    assert not marker.exists()
