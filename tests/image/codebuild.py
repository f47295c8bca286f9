"""Executes a buildspec as CodeBuild would, on this machine.

As documented in https://docs.aws.amazon.com/codebuild/latest/userguide/build-spec-ref.html and
https://docs.aws.amazon.com/codebuild/latest/userguide/view-build-details-phases.html:

- the commands of a phase run in turn in one shell, up to the first that fails, then those of `finally`;
- variables of a build win over those of the buildspec, and what a phase exports the next one has;
- a failed install or pre_build ends the build; after a failed build comes post_build, but for `on-failure: ABORT`;
- reports and artifacts are looked for at the end, whatever has failed;
- a build of a batch graph waits for those that it depends on.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

PHASES = ("install", "pre_build", "build", "post_build")
#: One shell for the commands of a phase. Its variables are kept however it ends.
_SHELL = """
kept=$1
shift
trap 'env -0 >"$kept"' EXIT
for command; do
  printf '[Container] Running command %s\\n' "$command"
  eval "$command" || exit
done
"""


class Build(NamedTuple):
    """How a build ended."""

    succeeded: bool
    #: Each phase that was entered, and whether it succeeded.
    phases: Mapping[str, bool]
    log: str
    exported: Mapping[str, str]
    #: By their paths below the directory that they are taken from.
    artifacts: Mapping[str, Path]
    reports: Mapping[str, tuple[Path, ...]]


def read_buildspec(source: Path, name: str = "buildspec.yml") -> dict[str, Any]:
    """A buildspec of a checkout."""
    found: dict[str, Any] = yaml.safe_load((source / name).read_text())
    return found


def batch_order(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The builds of a batch graph, each after those that it depends on."""
    waiting, done = list(spec["batch"]["build-graph"]), set[str]()
    while waiting:
        ready = [each for each in waiting if set(each.get("depend-on", ())) <= done]
        assert ready, f"these wait for each other: {waiting}"
        for each in ready:
            yield each
            waiting.remove(each)
            done.add(each["identifier"])


def run_build(
    source: Path, given: Mapping[str, str], *, image: Mapping[str, str], buildspec: str = "buildspec.yml"
) -> Build:
    """One build.

    Args:
        source: The checkout, in which the commands run.
        given: Variables of the build, which win over those of the buildspec.
        image: Variables of the build environment's own image, which do not.
        buildspec: The one that the project names.
    """
    spec = read_buildspec(source, buildspec)
    assert spec["version"] == 0.2
    env = {**image, **{name: str(value) for name, value in spec["env"]["variables"].items()}, **given}
    env |= {"CODEBUILD_SRC_DIR": str(source), "CODEBUILD_BUILD_SUCCEEDING": "1"}
    phases: dict[str, bool] = {}
    log = ""
    for phase in PHASES:
        if phase not in spec["phases"]:
            continue
        steps = spec["phases"][phase]
        phases[phase], output, env = _run_phase(steps, source, env)
        log += output
        if not phases[phase]:
            env["CODEBUILD_BUILD_SUCCEEDING"] = "0"
            how = steps.get("on-failure")
            if how == "ABORT" or (how is None and phase in {"install", "pre_build"}):
                break
    return Build(
        succeeded=all(phases.values()),
        phases=phases,
        log=log,
        exported={name: env[name] for name in spec["env"]["exported-variables"] if name in env},
        artifacts=_collect(source, spec["artifacts"]) if "artifacts" in spec else {},
        reports={name: tuple(_collect(source, each).values()) for name, each in spec.get("reports", {}).items()},
    )


def _run_phase(steps: Mapping[str, Any], source: Path, env: Mapping[str, str]) -> tuple[bool, str, dict[str, str]]:
    succeeded, log = True, ""
    kept = source.with_name(source.name + ".env")
    for commands in (steps["commands"], steps.get("finally", [])):
        bash = shutil.which("bash")
        assert bash is not None
        done = subprocess.run(
            [bash, "-c", _SHELL, "bash", kept, *commands],
            cwd=source,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        succeeded, log = succeeded and done.returncode == 0, log + done.stdout
        env = dict(each.split("=", 1) for each in os.fsdecode(kept.read_bytes()).split("\0") if each)
    return succeeded, log, dict(env)


def _collect(source: Path, what: Mapping[str, Any]) -> dict[str, Path]:
    base = source / what.get("base-directory", ".")
    return {str(path.relative_to(base)): path for pattern in what["files"] for path in sorted(base.glob(pattern))}
