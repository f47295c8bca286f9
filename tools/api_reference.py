"""The API reference as Markdown: names, signatures and docstrings, read from the source. Nothing of it is imported."""

import ast
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "container"

#: What the reference lists: a module that programs import from, its names (none: all of `__all__`), and what it is for.
MODULES: Sequence[tuple[str, tuple[str, ...], str]] = (
    ("trainbox", (), "What every training script can import. `import trainbox` loads a name when it is first used."),
    (
        "trainbox.data",
        ("read_table", "Table", "ColumnSpec"),
        "Reads a channel: CSV, Parquet, libsvm, recordio-protobuf.",
    ),
    ("trainbox.contract.model_card", ("read_card", "ModelCard"), "Describes a model that a bundled script saved."),
    (
        "trainbox.xgboost",
        ("session", "BoostingSession", "Boosting", "Progress", "declare", "check_model", "Model"),
        "For scripts that train with XGBoost: `train_scripts/xgboost_train.py` and its copies.",
    ),
    (
        "trainbox.sklearn",
        ("session", "ForestSession", "Growth", "EstimatorData", "declare"),
        "For scripts that train with scikit-learn: `train_scripts/random_forest_train.py` and its copies.",
    ),
    (
        "trainbox.torch",
        (
            *("session", "Session", "Batches", "load_former", "read_samples", "Samples", "prepare", "EpochScores"),
            *("evaluate", "BestEpoch", "save_network", "perceptron", "convolutions", "load_factory", "learning_rate"),
        ),
        "For scripts that train with PyTorch, alone or on many ranks: `train_scripts/pytorch_train.py` and its copies.",
    ),
    ("trainbox.torch.transformers", ("TransformersCallback",), "For the Trainer of Hugging Face Transformers."),
    ("trainbox.torch.lightning", ("LightningCallback", "processes"), "For the Trainer of PyTorch Lightning."),
    ("trainbox.torch.accelerate", ("AccelerateLoop",), "For loops with Hugging Face Accelerate."),
    (
        "trainbox.contract.job_spec",
        ("JobSpec", "LocalScript"),
        "A job as a value: a typed subset of CreateTrainingJob.",
    ),
    (
        "trainbox.contract.job_request",
        ("read_spec", "from_request", "to_request"),
        "Reads and writes a job as a request of CreateTrainingJob.",
    ),
    (
        "trainbox.local.run_job",
        ("run_job", "LocalOptions", "JobOutcome"),
        "Runs a job on this machine.",
    ),
    (
        "trainbox.local.run_events.events",
        (
            "Listener",
            "JobStarted",
            "StatusChanged",
            "HostStarted",
            "LinesWritten",
            "MetricLogged",
            "HostFinished",
            "JobFinished",
        ),
        "What `run_job` reports while a job runs.",
    ),
    ("trainbox.local.stop_request", ("StopRequest",), "Stops a job that `run_job` runs."),
    ("trainbox.sagemaker", ("Trainbox",), "For the `ModelTrainer` of SageMaker's SDK v3."),
)
#: Methods that a library calls, which no script does.
_HOOK = re.compile(r"_|on_(?!event$)|setup$|teardown$|model_post|model_dump|driver_|keys$|require_same$")
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
_ITEM = re.compile(r"^    (\*{0,2}\w+): (.*)$")
_TITLES = {"Args": "argument", "Attributes": "attribute", "Raises": "raises"}

Definition = ast.ClassDef | ast.FunctionDef


class MissingNameError(Exception):
    """A name that the reference lists is not defined where its module says."""


class Found(NamedTuple):
    """A definition, and the module that holds it."""

    module: str
    node: Definition


def render() -> str:
    """The reference.

    Raises:
        MissingNameError: A name of `MODULES` has no definition.
    """
    return re.sub(r"\n{3,}", "\n\n", "\n".join(_module(*entry) for entry in MODULES))


def _module(module: str, names: Sequence[str], purpose: str) -> str:
    listed = names or _all(module)
    entries = [_entry(module, name, find(module, name)) for name in listed]
    return "\n".join([f"## {module}", "", purpose, "", *entries])


def find(module: str, name: str) -> Found:
    """Follow the imports of a name to its definition.

    Raises:
        MissingNameError: There is none.
    """
    for node in _statements(module):
        if isinstance(node, Definition) and node.name == name:
            return Found(module, node)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "trainbox":
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(node.module, alias.name)
    raise MissingNameError(f"{module} has no {name!r}: correct MODULES in {Path(__file__).name}")


@functools.cache
def _statements(module: str) -> tuple[ast.stmt, ...]:
    """The statements of a module, with those below `if` and `try`."""
    return tuple(_flat(ast.parse(_source(module)).body))


@functools.cache
def _source(module: str) -> str:
    path = PACKAGE.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.read_text(encoding="utf-8")


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _flat(node.body)


def _all(module: str) -> list[str]:
    for node in _statements(module):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise MissingNameError(f"{module} has no __all__")


def _entry(module: str, name: str, found: Found) -> str:
    lines = [f"### {module}.{name}", ""]
    if isinstance(found.node, ast.FunctionDef):
        return "\n".join([*lines, *_signature(found.node, name), _body(found.node)])
    fields = list(_fields(found))
    makes = next((node for node in _functions(found.node) if node.name == "__init__"), None)
    if makes is not None and "Made by" not in (ast.get_docstring(found.node) or ""):
        lines += _signature(makes, name)
    lines.append(_body(found.node))
    if fields:
        lines.append(_table(("attribute", "type", "meaning"), fields))
    for node in _functions(found.node):
        if not _HOOK.match(node.name):
            lines += [f"#### {name}.{node.name}", "", *_signature(node, node.name), _body(node)]
    return "\n".join(lines)


def _functions(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    return (each for each in node.body if isinstance(each, ast.FunctionDef))


def _fields(found: Found) -> Iterator[tuple[str, ...]]:
    """The attributes that a class declares: name, type with default, and the comment `#:` above."""
    lines = _source(found.module).splitlines()
    for each in found.node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and not _HOOK.match(each.target.id):
            default = f" = {ast.unparse(each.value)}" if each.value else ""
            first = each.lineno - 1
            while lines[first - 1].lstrip().startswith("#:"):
                first -= 1
            comment = " ".join(line.strip().removeprefix("#:").strip() for line in lines[first : each.lineno - 1])
            yield each.target.id, f"`{_type(each.annotation)}{default}`", comment


def _signature(node: ast.FunctionDef, name: str) -> list[str]:
    decorators = {ast.unparse(each) for each in node.decorator_list}
    returned = _type(node.returns) if node.returns else "None"
    if "property" in decorators:
        return ["```text", f"{name}: {returned}", "```", ""]
    if "contextmanager" in decorators:
        returned = returned.replace("Iterator", "ContextManager")
    arguments = [each for each in _arguments(node.args) if each != "self"]
    end = "" if node.name == "__init__" else f" -> {returned}"
    line = f"{name}({', '.join(arguments)}){end}"
    if len(line) <= 100:  # noqa: PLR2004 - the width of a page
        return ["```text", line, "```", ""]
    return ["```text", f"{name}(", *(f"    {each}," for each in arguments), f"){end}", "```", ""]


def _arguments(given: ast.arguments) -> Iterator[str]:
    """The arguments of a function as they are written."""
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    yield from (_argument(each, default) for each, default in zip(plain, defaults, strict=True))
    if given.vararg:
        yield f"*{_argument(given.vararg, None)}"
    elif given.kwonlyargs:
        yield "*"
    yield from (_argument(each, default) for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True))
    if given.kwarg:
        yield f"**{_argument(given.kwarg, None)}"


def _argument(node: ast.arg, default: ast.expr | None) -> str:
    kind = f": {_type(node.annotation)}" if node.annotation else ""
    if default is None:
        return f"{node.arg}{kind}"
    return f"{node.arg}{kind}{' = ' if kind else '='}{ast.unparse(default)}"


def _type(node: ast.expr) -> str:
    """An annotation as it is written, without the quotes of a forward reference."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)


def _body(node: Definition) -> str:
    """A docstring as Markdown: its sections as tables, its examples as blocks."""
    text = ast.get_docstring(node) or ""
    parts: list[str] = []
    plain: list[str] = []
    section = ""
    for line in [*text.splitlines(), "End:"]:
        heading = _SECTION.match(line)
        if heading or line == "End:":
            parts.append(_paragraphs(plain) if not section else _section(section, plain))
            section, plain = (heading[1] if heading else ""), []
        else:
            plain.append(line)
    return "\n".join(part for part in parts if part.strip())


def _section(name: str, lines: Sequence[str]) -> str:
    if name not in _TITLES:
        return f"{name}: " + " ".join(line.strip() for line in lines if line.strip()) + "\n"
    items: list[tuple[str, str]] = []
    for line in lines:
        item = _ITEM.match(line)
        if item:
            items.append((item[1], item[2]))
        elif line.strip() and items:
            items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}")
    return _table((_TITLES[name], "meaning"), items)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, *rest in rows:
        lines.append(f"| `{name}` | " + " | ".join(text.replace("|", "\\|") for text in rest) + " |")
    return "\n".join([*lines, ""])


def _paragraphs(lines: Sequence[str]) -> str:
    """Text, with examples and indented code in blocks of their own."""
    out: list[str] = []
    kind = ""
    for line in [*lines, ""]:
        now = "pycon" if line.startswith(">>> ") or (kind == "pycon" and line.strip()) else ""
        now = now or ("text" if line.startswith("    ") or (kind == "text" and not line.strip()) else "")
        if now != kind:
            while kind and out and not out[-1].strip():
                out.pop()
            out += [*(["```", ""] if kind else []), *([f"```{now}"] if now else [])]
            kind = now
        out.append(line.removeprefix("    ") if kind == "text" else line)
    if kind:
        out += ["```", ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out))
