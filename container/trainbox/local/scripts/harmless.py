"""Pure: what a statement at the top level of a script does, judged by the calls in it, which are not made."""

import ast
import builtins
from collections.abc import Iterator, Mapping, Sequence

#: What is called at the top level of scripts and trains nothing: full names, or those of a module with a dot behind.
_KNOWN = (
    *("msgspec.", "typing.", "typing_extensions.", "annotated_types.", "dataclasses.", "enum.", "collections."),
    *("re.", "math.", "operator.", "itertools.", "functools.partial", "functools.cache", "string.", "types."),
    *("logging.", "warnings.", "pathlib.Path", "pathlib.PurePath", "pathlib.Path.cwd", "pathlib.Path.home"),
    *("os.path.", "os.environ.", "os.getenv", "os.cpu_count", "sys.path."),
    *("datetime.", "decimal.", "fractions.", "uuid.", "json.dumps", "json.loads", "importlib.metadata."),
    *("random.seed", "numpy.random.seed", "torch.manual_seed", "torch.set_num_threads", "torch.device"),
    *("trainbox.Metric", "trainbox.metrics."),
)
#: Of Python's own functions those that wait, ask, open or run something.
_ACTING_BUILTINS = frozenset({"open", "input", "exec", "eval", "compile", "breakpoint", "exit", "quit", "__import__"})
#: Methods of text, lists, dictionaries and paths.
_METHODS = frozenset(
    {
        *("append", "extend", "insert", "add", "update", "setdefault", "get", "items", "keys", "values", "copy"),
        *("format", "join", "split", "strip", "lower", "upper", "title", "replace", "startswith", "endswith"),
        *("removeprefix", "removesuffix", "partition", "absolute", "resolve", "joinpath", "with_suffix", "with_name"),
    }
)
#: Methods and functions whose name says that they train, wherever they come from.
_TRAINING = frozenset({"fit", "fit_transform", "partial_fit", "fit_generator", "train", "backward", "train_on_batch"})
#: Functions of a script that its guard is there for.
_STARTING = frozenset({"main", "run", "train", "fit", "training", "train_model", "run_training"})
#: What a script asks of its container (`trainbox.toolkit`): it is a job from there on.
_CONTRACT = frozenset(
    {
        *("hyperparameters", "channel", "checkpoints", "current_job", "final", "log", "model_dir", "save"),
        *("seconds_left", "stop_requested", "session"),
    }
)
_Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class ModuleNames:
    """What the names of a file stand for.

    Args:
        body: Its statements.
    """

    def __init__(self, body: Sequence[ast.stmt]) -> None:
        self.imported = dict(_imported(body))
        self.functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        self.classes = {node.name for node in body if isinstance(node, ast.ClassDef)}

    def full(self, called: ast.expr) -> str:
        """The full name of what is called, as far as it comes from an import; a dot and the name for a method."""
        parts: list[str] = []
        while isinstance(called, ast.Attribute):
            parts.insert(0, called.attr)
            called = called.value
        if not isinstance(called, ast.Name):  # of what a call returns, for example
            return f".{parts[-1]}" if parts else ""
        return ".".join((self.imported.get(called.id, called.id), *parts))


def _imported(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for node in (inner for statement in body for inner in ast.walk(statement)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (top, top)
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module or '.'}.{alias.name}") for alias in node.names)


def calls(node: ast.AST) -> Iterator[ast.Call]:
    """The calls that are made when a statement runs: not those within functions that it defines."""
    if isinstance(node, ast.Call):
        yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _Scope):
            yield from calls(child)


def is_harmless(node: ast.stmt, names: ModuleNames, within: tuple[str, ...] = ()) -> bool:
    """Whether a statement is known to declare something and to do nothing else.

    Args:
        node: The statement.
        names: Of its file.
        within: The functions of the file that it is in.
    """
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        decorators = {each.id for each in node.decorator_list if isinstance(each, ast.Name)}
        return all(_declares(name, names, within) for name in decorators & {*names.functions})
    if isinstance(node, ast.ClassDef):  # what a library is called for in one says what its fields are
        return not any(
            trains(call, names) or not _declares(names.full(call.func), names, within) for call in calls(node)
        )
    for inner in _run_with(node):
        if isinstance(inner, ast.While | ast.AsyncFor) or (isinstance(inner, ast.For) and not _collects(inner)):
            return False
    return all(_is_known(call, names, within) for call in calls(node))


def _run_with(node: ast.AST) -> Iterator[ast.AST]:
    """A statement and all that runs with it."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _Scope):
            yield from _run_with(child)


def _collects(node: ast.For) -> bool:
    """Whether a loop fills lists or dictionaries, and says or computes nothing."""
    is_quiet = not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls(node))
    return is_quiet and not any(isinstance(inner, ast.AugAssign) for inner in ast.walk(node)) and any(changed(node))


def _is_known(call: ast.Call, names: ModuleNames, within: tuple[str, ...]) -> bool:
    called = names.full(call.func)
    handed_on = {each.id for each in ast.walk(call) if isinstance(each, ast.Name)} & {*names.functions}
    if trains(call, names) or not all(_declares(name, names, within) for name in handed_on):
        return False
    if isinstance(call.func, ast.Name) and called == call.func.id:
        is_own = called in names.classes or called in names.functions
        return is_own or (hasattr(builtins, called) and called not in _ACTING_BUILTINS)
    if any(called == known or (known.endswith(".") and called.startswith(known)) for known in _KNOWN):
        return True
    return isinstance(call.func, ast.Attribute) and call.func.attr in _METHODS


def _declares(called: str, names: ModuleNames, within: tuple[str, ...]) -> bool:
    """Whether a function does nothing but declare, as far as it is one of the file."""
    function = names.functions.get(called)
    if function is None or called in within:
        return True
    return all(is_harmless(each, names, (*within, called)) for each in function.body)


def may_train(node: ast.stmt, names: ModuleNames, within: tuple[str, ...] = ()) -> bool:
    """Whether there is a sign that a statement trains: what it calls, itself or in a function of the file."""
    if isinstance(node, _Scope):  # it runs when it is called
        return False
    for call in calls(node):
        called = names.full(call.func)
        if trains(call, names) or (called in names.functions and called in _STARTING):
            return True
        function = names.functions.get(called)
        if function is not None and called not in within:
            inner = (*within, called)
            if any(may_train(each, names, inner) for each in function.body):
                return True
    return False


def trains(call: ast.Call, names: ModuleNames) -> bool:
    """Whether a call begins a job, or says by its name that it trains."""
    called = names.full(call.func)
    room, _, last = called.rpartition(".")
    return last in _TRAINING or (last in _CONTRACT and room.partition(".")[0] == "trainbox")


def bound(node: ast.AST) -> Iterator[str]:
    """The names that a statement gives a meaning at the top level."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
        yield node.id
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Lambda):
            yield from bound(child)


def changed(node: ast.stmt) -> Iterator[str]:
    """The names whose value a statement changes without an assignment: `METRICS.append(…)`, `TABLE[1] = …`."""
    for call in calls(node):
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            yield call.func.value.id
    for inner in ast.walk(node):
        if isinstance(inner, ast.Subscript | ast.Attribute) and isinstance(inner.ctx, ast.Store):
            yield ast.unparse(inner).partition(".")[0].partition("[")[0]


def read(node: ast.AST, *, later: bool) -> Iterator[str]:
    """The names that a statement reads.

    Args:
        node: The statement.
        later: Whether those that the functions it defines read when they are called, in place of those it reads itself.
    """
    if isinstance(node, _Scope):
        own = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        own += [] if isinstance(node, ast.Lambda) else [*node.decorator_list, *_annotations(node)]
        for part in own:
            yield from read(part, later=later)
        if later:
            body = [node.body] if isinstance(node, ast.Lambda) else node.body
            yield from (name for part in body for name in _all_read(part))
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and not later:
        yield node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier() and not later:
        yield node.value  # an annotation may be quoted
    for child in ast.iter_child_nodes(node):
        yield from read(child, later=later)


def _annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr]:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [found for found in (node.returns, *(each.annotation for each in given)) if found is not None]


def _all_read(node: ast.AST) -> Iterator[str]:
    yield from (each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load))


def makes_metrics(node: ast.stmt, names: ModuleNames, known: Mapping[str, bool] | None = None) -> bool:
    """Whether a statement makes a metric, by itself or by a function of the script."""
    known = known or {}
    for call in calls(node):
        called = names.full(call.func)
        if called in {"trainbox.Metric", "trainbox.metrics.Metric"}:
            return True
        function = names.functions.get(called)
        if function is not None and called not in known:
            inner = {**known, called: True}
            if any(makes_metrics(each, names, inner) for each in function.body):
                return True
    return False
