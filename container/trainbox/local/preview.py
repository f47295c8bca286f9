"""What the supervisor of a host would start, by its own pure plan, without a host."""

import shutil
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from trainbox.contract.credentials.references import has_reference
from trainbox.contract.credentials.secrets import redact
from trainbox.contract.environment import GPU_VARIABLE
from trainbox.contract.job import read_job
from trainbox.contract.settings import is_ours
from trainbox.errors import RunError
from trainbox.local.plan import HYPERPARAMETERS, HostPlan, redacted_hyperparameters
from trainbox.local.source import Source
from trainbox.supervisor import plan as launch
from trainbox.supervisor.launcher_choice import modules_needed
from trainbox.supervisor.program.choice import (
    Program,
    bundled_directory,
    choose,
    find_session,
    needs_key,
    resolve,
)
from trainbox.system.machine import read_machine

#: Beside the program, all that decides how it is started.
_DECIDING = ("setup.py", "pyproject.toml", "requirements.txt")


class Preview(msgspec.Struct, frozen=True):
    """The supervisor's plan, and the values nobody may see."""

    plan: launch.Plan
    #: What pip would install first.
    install: tuple[str, ...]
    secrets: tuple[str, ...]


def preview(
    host: HostPlan, source: Source | None, script: str, hide: Collection[str] = (), *, in_image: bool = False
) -> Preview:
    """Ask the supervisor's plan; the contract's files exist for that moment only, in a temporary directory.

    Args:
        host: The host, as planned.
        source: The source of the job.
        script: The program.
        hide: Names whose values are secret whatever they say. No secret is in the plan, short ones neither.
        in_image: Whether only the image has the program.

    Raises:
        RunError: No temporary directory can be written.
        TrainboxError: The job would fail with it.
    """
    try:
        return _preview(_without_secrets(host, hide), source, script, in_image=in_image)
    except OSError as error:
        hint = "TMPDIR=DIR names a directory that can be written"
        raise RunError(f"the plan of {host.name} cannot be made: {error}", hint=hint) from error


def _without_secrets(host: HostPlan, hide: Collection[str]) -> HostPlan:
    # Ours are read here, which `***` could not be; of what a reference stands for nothing can be read yet.
    ours = {name: value for name, value in host.environment.items() if is_ours(name)}
    others = {name: value for name, value in host.environment.items() if name not in ours}
    environment = {name: str(value) for name, value in redact(others, hide).items()}
    environment |= {name: value for name, value in ours.items() if not has_reference(value)}
    files = {**host.files, HYPERPARAMETERS: redacted_hyperparameters(host, hide)}
    return msgspec.structs.replace(host, files=files, environment=environment)


def _preview(host: HostPlan, source: Source | None, script: str, *, in_image: bool) -> Preview:
    with tempfile.TemporaryDirectory(prefix="trainbox-") as name:
        root = Path(name)
        (root / "input" / "config").mkdir(parents=True)
        for file, content in host.files.items():
            (root / file).write_text(content, encoding="utf-8")
        if source is not None:
            _copy_deciding(source, script, root / "code")
        job = read_job(root, host.environment)
        if in_image:
            program = _program_of_image(script, root / "code")
        else:
            choice = choose(job)
            program = resolve(choice, root / "code" if source is not None else Path(choice.source.location))
        if source is not None and program.is_python and program.name.endswith(".py"):
            # Of the source only what decides was copied.
            session = find_session(source.directory / program.name, source.directory)
            program = msgspec.structs.replace(program, session=session)
        if job.peer_key is not None and not in_image:
            of_key = needs_key(program, program.directory if source is None else source.directory)
            program = msgspec.structs.replace(program, needs_key=of_key)
        machine = read_machine(modules=modules_needed(job, program), listed_gpus=host.environment.get(GPU_VARIABLE))
        planned = launch.plan(job, program, env=host.environment, machine=machine)
        moves = {str(root): str(host.root)}
        if host.namespace and host.is_supervised:  # by a Python that may be that of an overlay
            moves[sys.executable] = host.argv[0]
        if not host.namespace:
            # A container has an interpreter and bundled scripts of its own.
            moves |= {sys.executable: "python3", str(bundled_directory()): "train_scripts"}
        children = tuple(_seen_from_the_host(child, moves) for child in planned.children)
        sidecars = tuple(_seen_from_the_host(child, moves) for child in planned.sidecars)
        seen = msgspec.structs.replace(planned, children=children, sidecars=sidecars)
        return Preview(seen, program.install, job.secrets)


def _program_of_image(script: str, code: Path) -> Program:
    """What its supervisor will make of a script that is not here, as far as the name tells."""
    path = Path(script)
    if not path.is_absolute():
        return Program(f"{script}.py", (sys.executable, f"{script}.py"), bundled_directory())
    command = (sys.executable, path.name) if path.suffix == ".py" else (f"./{path.name}",)
    return Program(path.name, command, code)


def _copy_deciding(source: Source, script: str, code: Path) -> None:
    for name in (script, *_DECIDING):
        if (source.directory / name).is_file():
            (code / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source.directory / name, code / name)


def _seen_from_the_host(child: launch.Child, moves: Mapping[str, str]) -> launch.Child:
    def moved(text: str) -> str:
        for here, there in moves.items():
            text = text.replace(here, there)
        return text

    return launch.Child(
        name=child.name,
        argv=tuple(map(moved, child.argv)),
        environment={name: moved(value) for name, value in child.environment.items()},
        directory=Path(moved(str(child.directory))),
    )
