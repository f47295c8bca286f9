"""The user's `inference.py`: its hooks have the names, the arguments and the `context` of SageMaker's toolkits.

Source: https://github.com/aws/sagemaker-inference-toolkit (transformer.py); a hook that has one parameter more than it
is given gets the context. What an error of a hook says names the user's own line.
"""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec

from trainbox.errors import ProgramError
from trainbox.serving.hooks.context import Context
from trainbox.serving.hooks.user_module import HOOKS, Module, check_hooks

#: How many arguments each hook gets beside the context.
_ARGUMENTS: Mapping[str, int] = {
    "model_fn": 1,
    "input_fn": 2,
    "predict_fn": 2,
    "output_fn": 2,
    "transform_fn": 4,
    "pre_model_fn": 1,
    "model_warmup_fn": 2,
    "execution_parameters_fn": 0,
}
_FIRST_ERROR, _SERVER_ERROR = 400, 500
_ERRORS = frozenset(status.value for status in HTTPStatus if status >= _FIRST_ERROR)


class HookError(ProgramError):
    """A hook of the user has raised an error, or cannot be called.

    Args:
        message: What, and where.
        hint: What to do.
        status: The HTTP status of the answer; an exception with a `status_code` chooses it.
        redacted: The message without the exception's own text, which may hold what the request does.
    """

    def __init__(self, message: str, *, hint: str = "", status: int = _SERVER_ERROR, redacted: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.redacted = redacted


class Hooks(msgspec.Struct, frozen=True):
    """The hooks of the user's module, imported."""

    path: Path
    functions: Mapping[str, Callable[..., Any]]
    #: Those that take the context.
    with_context: frozenset[str]

    def __contains__(self, name: str) -> bool:
        return name in self.functions

    @property
    def is_rowwise(self) -> bool:
        """Whether requests may be joined: only where `predict_fn` is ours, or has `rowwise = True`."""
        if not {"input_fn", "output_fn", "transform_fn"}.isdisjoint(self.functions):
            return False
        return "predict_fn" not in self or bool(getattr(self.functions["predict_fn"], "rowwise", False))


def load_hooks(module: Module) -> Hooks:
    """Import the user's module.

    Args:
        module: As `find_model` has found it.

    Raises:
        HookError: It cannot be imported, or a hook has other parameters.
        ProgramError: It defines `transform_fn` beside what that stands for.
    """
    imported = _import(module.path)
    functions = {name: found for name in HOOKS if callable(found := getattr(imported, name, None))}
    check_hooks(module.path, tuple(functions))
    with_context = {name for name, function in functions.items() if _takes_context(name, function, module.path)}
    return Hooks(module.path, functions, frozenset(with_context))


def _import(path: Path) -> object:
    """Import a file by its name, so that what was pickled by it is found; its directory and `lib/` are searched."""
    for directory in (path.parent / "lib", path.parent):
        if directory.is_dir() and str(directory) not in sys.path:
            sys.path.insert(0, str(directory))
    name = path.stem if path.stem not in sys.modules else f"trainbox_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise HookError(f"{path} cannot be imported", hint="its name ends with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = f"add {error.name} to code/requirements.txt, or put the module into code/"
        raise HookError(f"{path.name} cannot be imported: {describe(error, path)}", hint=hint) from error
    return module


def _takes_context(name: str, function: Callable[..., Any], path: Path) -> bool:
    """Return whether a hook takes the context: it has a parameter more than it is given.

    Raises:
        HookError: It has another number of parameters.
    """
    count = _ARGUMENTS[name]
    try:
        known = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False  # a builtin without a signature
    places = [one for one in known if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    needed = [one for one in known if one.default is one.empty and one in places]
    named = [one for one in known if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    takes_any = any(one.kind is one.VAR_POSITIONAL for one in known)
    if len(needed) > count + 1 or named or (len(places) < count and not takes_any):
        raise HookError(
            f"{name} of {path.name} has the parameters ({', '.join(str(one) for one in known)}), expected {count},"
            " and perhaps context",
            hint="the parameters of each hook are in docs/serving.md",
        )
    return len(needed) == count + 1 or (len(places) > count and places[count].name == "context")


def call(hooks: Hooks, name: str, *given: Any, context: Context) -> Any:  # noqa: ANN401 - a hook takes and gives anything
    """Call a hook.

    Raises:
        HookError: It has raised an error; names the user's line.
    """
    arguments = (*given, context) if name in hooks.with_context else given
    try:
        return hooks.functions[name](*arguments)
    except (Exception, SystemExit) as error:
        raise as_hook_error(hooks, name, error) from error


def as_hook_error(hooks: Hooks, name: str, error: BaseException) -> HookError:
    """Return what to say of an exception of a hook."""
    status = getattr(error, "status_code", None)
    chosen = int(status) if isinstance(status, int) and status in _ERRORS else _SERVER_ERROR
    return HookError(
        f"{name}: {describe(error, hooks.path)}",
        hint="its traceback is in the log",
        status=chosen,
        redacted=f"{name}: {describe(error, hooks.path, has_text=False)}",
    )


def describe(error: BaseException, path: Path, *, has_text: bool = True) -> str:
    """Return an exception with the innermost line of the user's own code.

    Args:
        error: What was raised.
        path: The user's module; what lies in its directory is the user's.
        has_text: Whether the exception's own text is a part of it.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(path.parent)]
    where = ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({Path(error.filename).name}:{error.lineno})"
    elif own:
        shown = Path(own[-1].filename).relative_to(path.parent)
        inside = "" if own[-1].name == "<module>" else f" in {own[-1].name}"
        where = f" ({shown}:{own[-1].lineno}{inside})"
    text = str(error.msg if isinstance(error, SyntaxError) else error) if has_text else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"


def load_user_model(hooks: Hooks, model_dir: Path, load_ours: Callable[[], Any], context: Context) -> Any:  # noqa: ANN401
    """Load the model: by `model_fn`, or as one of ours where the module has none.

    Args:
        hooks: The hooks.
        model_dir: Where the model lies.
        load_ours: Loads one of ours.
        context: Of the start.

    Raises:
        HookError: A hook has raised an error.
    """
    if "pre_model_fn" in hooks:
        call(hooks, "pre_model_fn", str(model_dir), context=context)
    model = call(hooks, "model_fn", str(model_dir), context=context) if "model_fn" in hooks else load_ours()
    if "model_warmup_fn" in hooks:
        call(hooks, "model_warmup_fn", str(model_dir), model, context=context)
    return model
