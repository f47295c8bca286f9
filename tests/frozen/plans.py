"""The plan of a job as text that can be compared: the tree's root and the interpreter have names in it."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.frozen.jobs import FrozenJob
from tests.frozen.recorded import as_json
from trainbox.contract.failures.diagnosis import diagnose_error
from trainbox.contract.job import Job, read_job
from trainbox.errors import TrainboxError
from trainbox.supervisor.plan import Child, Plan, plan
from trainbox.supervisor.program.choice import Choice, bundled_directory, choose, resolve

_CONFIG = "input/config"


def build_tree(job: FrozenJob, root: Path) -> Path:
    """Write what SageMaker would mount at `/opt/ml`."""
    (root / _CONFIG).mkdir(parents=True)
    files = {
        "hyperparameters": job.hyperparameters,
        "resourceconfig": job.resources,
        "inputdataconfig": job.channels,
        "checkpointconfig": job.checkpoints,
    }
    for name, content in files.items():
        if content is not None:
            (root / _CONFIG / f"{name}.json").write_text(json.dumps(content))
    for name, text in job.code.items():
        for code in (root / "code", root / "input/data/code"):
            (code / name).parent.mkdir(parents=True, exist_ok=True)
            (code / name).write_text(text)
    return root


def plan_of(frozen: FrozenJob, root: Path) -> str:
    """The plan, or the error in its place, as JSON."""
    build_tree(frozen, root)
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "TRAINBOX_ROOT": str(root), **frozen.env}
    try:
        found = _planned(frozen, root, env)
    except TrainboxError as error:
        found = {
            "error": type(error).__name__,
            "exit_code": error.exit_code,
            "cause": diagnose_error(error).cause,
            "hint": error.hint,
        }
    return as_json(normalised(found, root))


def _planned(frozen: FrozenJob, root: Path, env: Mapping[str, str]) -> dict[str, object]:
    job = read_job(root, env)
    choice = choose(job)
    # Code that would be fetched lies there already; nothing is fetched here.
    directory = Path(choice.source.location) if choice.source.kind == "place" else root / "code"
    program = resolve(choice, directory)
    made = plan(job, program, env=env, machine=frozen.machine)
    return {
        "job": _about(job, choice),
        "install": program.install,
        "plan": _about_plan(made),
    }


def _about(job: Job, choice: Choice) -> dict[str, object]:
    source = f"{choice.source.kind} {choice.source.location}"
    return {
        "name": job.name,
        "region": job.region,
        "host": f"{job.current_host}, number {job.host_rank} of {len(job.hosts)}",
        "checkpoints": [str(job.checkpoints_dir), job.checkpoint_s3_uri, job.has_checkpoint_config],
        "channels": {
            name: [str(channel.path), channel.input_mode, channel.content_type, channel.distribution]
            for name, channel in job.channels.items()
        },
        "program": choice.name,
        "source": source,
        "bundled": choice.bundled,
        "notes": job.notes,
        "secrets": len(job.secrets),
    }


def _about_plan(made: Plan) -> dict[str, object]:
    first = made.children[0]
    return {
        "children": [_about_child(child, None if child is first else first) for child in made.children],
        "sidecars": [_about_child(child, first) for child in made.sidecars],
        "grace_seconds": made.grace_seconds,
        "limit_seconds": str(made.limit_seconds),
        "notes": made.notes,
        "preflight": made.preflight,
        "processes": made.processes,
        "scratch": None if made.scratch is None else str(made.scratch),
    }


def _about_child(child: Child, first: Child | None) -> dict[str, object]:
    """All of a child; of further ones the environment is what differs from the first one's."""
    environment: dict[str, object] = {name: _readable(value) for name, value in child.environment.items()}
    about: dict[str, object] = {"name": child.name, "argv": child.argv, "directory": str(child.directory)}
    if first is None:
        return about | {"environment": environment}
    changed = {
        name: value for name, value in environment.items() if first.environment.get(name) != child.environment[name]
    }
    missing = sorted(set(first.environment) - set(environment))
    return about | {f"environment of {first.name}, but": changed, "environment without": missing}


def _readable(text: str) -> object:
    """What compact, sorted JSON says: from it the text follows to the byte."""
    if text[:1] not in {"{", "["}:
        return text
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value if json.dumps(value, sort_keys=True, separators=(",", ":")) == text else text


def normalised(value: object, root: Path) -> object:
    """The same without what belongs to this machine: the root, the interpreter, the place of the bundled scripts."""
    if isinstance(value, str):
        for here, name in (
            (str(root), "<root>"),
            (sys.executable, "<python>"),
            (str(bundled_directory()), "<train_scripts>"),
        ):
            value = value.replace(here, name)
        return value
    if isinstance(value, Mapping):
        return {normalised(name, root): normalised(each, root) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [normalised(each, root) for each in value]
    return value
