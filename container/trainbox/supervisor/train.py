"""The program `train`: contract, program, plan, supervise, failure file and exit code."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from trainbox.contract.cluster.world import world_hosts
from trainbox.contract.credentials.peer_key import without_peer_key
from trainbox.contract.credentials.references import fill_in_variables
from trainbox.contract.credentials.secrets import hidden_values
from trainbox.contract.environment import GPU_VARIABLE
from trainbox.contract.failures.diagnosis import diagnose_defect, diagnose_error
from trainbox.contract.failures.failure import mark_failure, reserve_failure
from trainbox.contract.job import Job, read_environment, read_job, read_references
from trainbox.contract.layout import ROOT_VARIABLE, Layout
from trainbox.contract.text import short
from trainbox.errors import PREFIX, ContractError, Stopped, TrainboxError
from trainbox.log_lines import emit
from trainbox.supervisor.ending import exit_code, fail, report
from trainbox.supervisor.launcher_choice import modules_needed
from trainbox.supervisor.outcome import Outcome
from trainbox.supervisor.plan import Plan, plan
from trainbox.supervisor.program.choice import Choice, Program, choose, needs_key, resolve
from trainbox.supervisor.supervise import supervise
from trainbox.system.machine import read_machine
from trainbox.system.shm_dir import scratch_directory

if TYPE_CHECKING:
    from trainbox.diagnostics.verdict import Verdict

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_USAGE = """\
usage: train

Runs the training job that the tree at /opt/ml (or at TRAINBOX_ROOT) describes. It takes no arguments: SageMaker passes
everything in /opt/ml/input/config and the environment. To build such a tree and run a job on this machine, see
`trainbox run --help`.

examples:
  docker run --rm -v $PWD/ml:/opt/ml IMAGE train
  TRAINBOX_ROOT=$PWD/ml TRAINBOX_SCRIPT=xgboost train
"""


def main() -> int:
    """Run the job of this container to its end.

    Returns:
        The exit code of the job: the script's own, or that of the `TrainboxError` that kept it from running.
    """
    arguments = sys.argv[1:]
    if arguments in (["-h"], ["--help"]):
        sys.stdout.write(_USAGE)
        return 0
    # SageMaker's own argument arrives here where the image has `train` as its ENTRYPOINT (toolkit issue #65).
    if arguments not in ([], ["train"]):
        found = " ".join(map(short, arguments))
        sys.stderr.write(f"{PREFIX}train takes no arguments, and was given {found}\n{_USAGE}")
        return 2
    _open_standard_streams()
    code = _run_job(_with_absolute_root(read_environment()))
    _let_go_of_stderr()
    return code


def _run_job(env: Mapping[str, str]) -> int:
    layout = _layout_of_platform(env)
    hidden = hidden_values(env)
    outcome: Outcome | None = None
    earlier = mark_failure(layout.failure_file)
    try:
        with _stop_raises() as check_stop:
            _require_layout(layout, env)
            _make_output_directories(layout)
            wanted = read_references(layout.root, env)
            if wanted.references:
                from trainbox.supervisor.references import resolve  # noqa: PLC0415 - most jobs refer to nothing

                values = resolve(wanted, emit)
                env = fill_in_variables(env, values, wanted.of_hyperparameters)
                hidden = hidden_values(env, values, also=values)
            job = read_job(layout.root, env)
            if wanted.references:  # also what is only a part of a variable
                job = replace(job, secrets=tuple(sorted({*hidden, *job.secrets}, key=len, reverse=True)))
            hidden = job.secrets
            program, outcome, verdict = _run(job, without_peer_key(env), check_stop)
        if verdict and not outcome.stopped_by:  # another host was
            outcome = replace(outcome, stopped_by=verdict.stopped)
        diagnosis = report(outcome, verdict, program, job)
        if diagnosis is None:
            return exit_code(outcome, job)
    except TrainboxError as error:
        diagnosis = diagnose_error(error)
    except Exception as error:  # noqa: BLE001 - the one place where a defect of trainbox becomes an exit code
        import traceback  # noqa: PLC0415 - four milliseconds that no job should pay for

        emit(traceback.format_exc(), hidden=hidden)
        diagnosis = diagnose_defect(error)
    return fail(diagnosis, layout, hidden, earlier, outcome)


def _layout_of_platform(env: Mapping[str, str]) -> Layout:
    """Return the tree that the environment names; on SageMaker, which uploads nothing else, always `/opt/ml`."""
    layout = Layout.from_environment(env)
    is_on_sagemaker = "TRAINING_JOB_ARN" in env and (Layout().config_dir / "resourceconfig.json").is_file()
    return Layout() if is_on_sagemaker else layout


def _require_layout(layout: Layout, env: Mapping[str, str]) -> None:
    named = Layout.from_environment(env)
    if named != layout:
        raise ContractError(
            f"{ROOT_VARIABLE} is {named.root}, and SageMaker's request is in {layout.config_dir}: the model would be"
            " lost",
            hint=f"leave {ROOT_VARIABLE} out of the image and of the request",
        )


def _open_standard_streams() -> None:
    """Open closed standard streams: the next file opened must not get their numbers."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.set_blocking(sys.stderr.fileno(), True)  # else a slow reader makes Python drop lines


def _with_absolute_root(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with an absolute root: the script has another working directory."""
    root = env.get(ROOT_VARIABLE)
    return {**env, ROOT_VARIABLE: str(Path(root).absolute())} if root else dict(env)


def _let_go_of_stderr() -> None:
    """Detach stderr if its reader is gone: Python would exit with 120 when it fails to flush it."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class _Interrupted(BaseException):
    """A signal, on its way through code that would catch an `Exception` (botocore does, and tries again)."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _stop_raises() -> Iterator[Callable[[], None]]:
    """Raise on SIGTERM and SIGINT until the script runs; by default PID 1 ignores them.

    After the script has ended they are ignored: only its end is left to report.

    Yields:
        A check that raises if a signal has come. Python drops what a handler raises while a finalizer or a callback of
        a weak reference runs (each import has one), so it is to be called where a lost signal would do harm.
    """
    came: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise _Interrupted(number)

    def check() -> None:
        if came:
            raise _Interrupted(came[0])

    for number in _STOP_SIGNALS:
        signal.signal(number, stop)
    try:
        # What has come since `trainbox.supervisor` began arrives here.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        yield check
    except _Interrupted as interrupted:
        name = signal.Signals(interrupted.number).name
        raise Stopped(f"stopped by {name} before the script was started") from None
    finally:
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _run(job: Job, env: Mapping[str, str], check_stop: Callable[[], None]) -> "tuple[Program, Outcome, Verdict | None]":
    for note in job.notes:
        emit(note, hidden=job.secrets)
    program, installed = _prepare(job, env)
    env = {**env, **installed}
    if len(job.hosts) > 1 and not job.settings.studio_local_mode:
        from trainbox.system.name_resolution import describe_protection, wait_for_peers  # noqa: PLC0415 - one host needs none

        if job.is_first_host and (protection := describe_protection(job)):
            emit(protection)
        # No process connects to the other hosts: they connect to the first.
        dialled = dict.fromkeys((job.hosts[0], world_hosts(job)[0]))
        timeout = job.settings.peer_timeout_seconds
        wait_for_peers(tuple(dialled), timeout=timeout, emit=emit, check_stop=check_stop)
    with scratch_directory() as scratch:
        machine = read_machine(modules=modules_needed(job, program), listed_gpus=env.get(GPU_VARIABLE))
        planned = plan(job, program, env=env, machine=machine, scratch=scratch)
        for note in planned.notes:
            emit(note, hidden=job.secrets)
        emit(_introduction(job, program, planned), hidden=job.secrets)
        if planned.preflight != "off":
            from trainbox.supervisor import preflight  # noqa: PLC0415 - one process on a processor has none

            preflight.check(job, planned, env)
        check_stop()
        outcome = supervise(planned, ignore_stops=True)
        return program, outcome, _read_verdict(planned)


def _read_verdict(planned: Plan) -> "Verdict | None":
    if planned.scratch is None:
        return None
    from trainbox.diagnostics.verdict import read_verdict  # noqa: PLC0415 - a job without an agent has none

    return read_verdict(planned.scratch)


def _prepare(job: Job, env: Mapping[str, str]) -> tuple[Program, Mapping[str, str]]:
    """Fetch the code, find the program in it and install what it asks for, which may change the environment."""
    choice = choose(job)
    if choice.source.kind == "place":
        directory = Path(choice.source.location)
    else:
        from trainbox.supervisor.program.source import fetch  # noqa: PLC0415 - most of its imports are for archives

        directory = fetch(choice.source, job, lambda text: emit(text, hidden=job.secrets))
    program = _in_usable_directory(resolve(choice, directory), choice, job)
    if job.peer_key is not None:
        program = replace(program, needs_key=needs_key(program, program.directory))
    if not program.install:
        return program, {}
    from trainbox.supervisor.requirements import install  # noqa: PLC0415

    return program, install(program, job, env)


def _in_usable_directory(program: Program, choice: Choice, job: Job) -> Program:
    """An installed module needs no code directory, but one to run in; pip writes where it builds."""
    if not program.directory.is_dir():
        from trainbox.supervisor.program.source import make_directory  # noqa: PLC0415 - as above

        return replace(program, directory=make_directory(program.directory))
    if program.install and not os.access(program.directory, os.W_OK):
        from trainbox.supervisor.program.source import copy_to_change  # noqa: PLC0415
        from trainbox.supervisor.requirements import builds_in_code  # noqa: PLC0415

        if builds_in_code(program, job):
            copy = copy_to_change(program.directory, job, lambda text: emit(text, hidden=job.secrets))
            return resolve(choice, copy)
    return program


def _make_output_directories(layout: Layout) -> None:
    """SageMaker mounts these; `docker run` with the inputs alone does not. A read-only tree is left to the script."""
    for directory in (layout.model_dir, layout.output_data_dir):
        with contextlib.suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        reserve_failure(layout.failure_file)
    if not os.access(layout.model_dir, os.W_OK | os.X_OK):
        emit(
            f"WARNING: {layout.model_dir} cannot be written by user {os.geteuid()}: a model has no place there. Mount a"
            f" directory of this user's, or name another tree ({ROOT_VARIABLE})"
        )


def _introduction(job: Job, program: Program, planned: Plan) -> str:
    parts = [f"job {job.name}" if job.name else "a job without a name"]
    if len(job.hosts) > 1:
        parts.append(f"host {job.current_host} ({job.host_rank + 1} of {len(job.hosts)})")
    if planned.processes > 1:
        parts.append(f"{planned.processes} processes")
    parts.append("channels " + (", ".join(job.channels) or "none"))
    return f"{'; '.join(parts)}; running {' '.join(program.command)} in {program.directory}"
