"""What a training script declares for a search: its `Params` and its metrics, read without training."""

import ast
from collections.abc import Mapping

import msgspec

from trainbox.contract.hyperparameters import is_reserved
from trainbox.errors import RunError
from trainbox.local.plan import RunPlan
from trainbox.local.scripts.declarations import parse
from trainbox.local.scripts.script_module import find_metrics, find_params, load_script
from trainbox.metrics import Metric
from trainbox.supervisor.program.choice import find_bundled
from trainbox.tuning.planning.script_arguments import find_argparse_flags


class Declared(msgspec.Struct, frozen=True):
    """What a script declares; nothing where it is not written for trainbox."""

    #: As messages name it.
    script: str = ""
    #: What `trainbox describe` takes for it.
    place: str = ""
    is_bundled: bool = False
    params: type | None = None
    metrics: tuple[Metric, ...] = ()
    #: The flags of its argument parser, of a script that is not written for trainbox; None where they are not known.
    flags: frozenset[str] | None = None
    #: Why it cannot be read.
    problem: str = ""


def read_declared(plan: RunPlan, hyperparameters: Mapping[str, str]) -> Declared:
    """Read what the script of a job declares.

    Args:
        plan: Of the job.
        hyperparameters: Those that all trials share, on which the metrics may depend.

    Raises:
        TrainboxError: The metrics depend on hyperparameters that are wrong.
    """
    request = plan.request
    path = None if request.source is None else request.source.directory / request.script
    is_bundled = path is None and not request.in_image and not request.command and not request.submit_directory
    if is_bundled:
        path = find_bundled(request.script)
    if path is None or path.suffix != ".py":
        return Declared(script=request.script)
    name = request.script.removesuffix("_train") if is_bundled else request.script
    place = name if is_bundled else str(path)
    try:
        tree = parse(path)
        if not _imports_trainbox(tree):
            return Declared(script=name, flags=_flags(tree, plan))
        module = load_script(path)
    except OSError as error:
        return Declared(script=name, problem=f"{path} cannot be read: {error.strerror}")
    except RunError as error:
        return Declared(script=name, problem=error.message)
    try:
        params: type | None = find_params(module)
    except RunError:
        params = None  # it need not have any
    try:
        own = {name: text for name, text in hyperparameters.items() if not is_reserved(name)}
        metrics = find_metrics(module, own if params is not None else {})
    except RunError as error:
        return Declared(script=name, place=place, is_bundled=is_bundled, params=params, problem=error.message)
    return Declared(script=name, place=place, is_bundled=is_bundled, params=params, metrics=metrics)


def _flags(tree: ast.Module, plan: RunPlan) -> frozenset[str] | None:
    """Those of a script that gets its hyperparameters as flags."""
    request = plan.request
    style = request.hyperparameters.get("trainbox_arguments") or request.env.get("TRAINBOX_ARGUMENTS")
    return find_argparse_flags(tree) if style in (None, "toolkit") else None


def _imports_trainbox(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        if any(name.partition(".")[0] == "trainbox" for name in names):
            return True
    return False
