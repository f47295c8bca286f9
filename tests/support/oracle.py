"""Answers what sagemaker-training makes of a contract; runs under `.venv-incumbent`, one JSON line for each on stdin.

A request is the environment of the container. The files lie in the tree that `SAGEMAKER_BASE_DIR` named when this
process began (the toolkit freezes its paths on import), and are rewritten between the requests. The steps are those of
the toolkit's `trainer.train` and `entry_point.run`; a step that fails is noted and the next one is still taken, so that
one difference does not hide another.
"""

import functools
import json
import os
import shutil
import sys
from collections.abc import Callable

from sagemaker_training import environment, logging_config, process  # type: ignore[import-not-found]  # not in .venv

_TRUE = shutil.which("true") or "/bin/true"


def _remember_the_machine() -> None:
    """What the toolkit asks other programs each time does not change between two requests."""
    for name in ("num_gpus", "num_neurons", "validate_smddprun", "validate_smddpmprun"):
        setattr(environment, name, functools.cache(getattr(environment, name)))


def _attempt(step: str, errors: list[str], action: Callable[[], object]) -> object:
    try:
        return action()
    except Exception as error:  # noqa: BLE001 - which one it is, is the answer
        errors.append(f"{step}: {type(error).__name__}")
        return None


def _write_variables(variables: dict[str, str], errors: list[str]) -> None:
    """`environment.write_env_vars`, but going on after a variable that cannot be set."""
    found: list[str] = []
    for name, value in {**variables, "PYTHONPATH": ":".join(sys.path)}.items():
        _attempt("environment", found, functools.partial(os.environ.__setitem__, name, value))
    errors += found[:1]


def _spawn(arguments: list[str]) -> None:
    pid = os.posix_spawn(_TRUE, [_TRUE, *arguments], os.environ)
    os.waitpid(pid, 0)


def answer(container: dict[str, str]) -> dict[str, object]:
    """What a script would be given in a container with this environment."""
    os.environ.clear()
    os.environ.update(container)
    errors: list[str] = []
    env = _attempt("contract", errors, environment.Environment)
    if not isinstance(env, environment.Environment):
        return {"errors": errors, "variables": {}, "arguments": []}
    arguments = _attempt("arguments", errors, env.to_cmd_args)
    variables = _attempt("variables", errors, env.to_env_vars)
    _attempt("logging", errors, lambda: logging_config.configure_logger(env.log_level))
    _attempt("program", errors, lambda: process.validate_entry_point(env.user_entry_point))
    if isinstance(arguments, list) and isinstance(variables, dict):
        _write_variables(variables, errors)
        _attempt("exec", errors, lambda: _spawn(arguments))
    added = {name: value for name, value in os.environ.items() if container.get(name) != value}
    return {"errors": errors, "variables": added, "arguments": arguments}


def main() -> None:
    """Answer until stdin ends."""
    _remember_the_machine()
    for request in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(request))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
