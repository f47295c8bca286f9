"""`trainbox run`: a job on this machine, with the same files, the same supervisor and the same ends as in the cloud."""

import argparse
import contextlib
import datetime as dt
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO, cast

import msgspec

from trainbox.contract.ending import stop_in
from trainbox.contract.failure import LARGEST_FAILURE_BYTES
from trainbox.contract.job import read_environment
from trainbox.contract.secrets import without_secrets
from trainbox.errors import RunError
from trainbox.files import disarm, keep_out_of_git, read_below
from trainbox.say import as_lines
from trainbox.workbench.archive import archive
from trainbox.workbench.collect import merge
from trainbox.workbench.confinement import NETWORKS
from trainbox.workbench.curves import Curves, joined
from trainbox.workbench.dry_run import describe
from trainbox.workbench.engine import DEFAULT_IMAGE
from trainbox.workbench.first_record import first_record, host_records
from trainbox.workbench.folder import claimed, keep_earlier_logs, last_bytes, remove
from trainbox.workbench.hosts import Ended
from trainbox.workbench.inputs.hosts import Hosts, read_hosts
from trainbox.workbench.inputs.pipes import pipes_written
from trainbox.workbench.inputs.place import fetch_inputs
from trainbox.workbench.install import run_hosts_of
from trainbox.workbench.interrupts import Interrupts
from trainbox.workbench.job_end import JobEnd, conclude
from trainbox.workbench.live import Live, Screen
from trainbox.workbench.next_steps import find_pictures, next_lines
from trainbox.workbench.overlay import find_overlay
from trainbox.workbench.overwriting import remove_result
from trainbox.workbench.pens import find_pen
from trainbox.workbench.plan import RunPlan, plan_run
from trainbox.workbench.preview import preview
from trainbox.workbench.processes import await_earlier
from trainbox.workbench.record import JobRecord, ModelRecord, Seconds, keep_record, write_record
from trainbox.workbench.remaining import Remaining, find_total
from trainbox.workbench.request import RESULTS, read_request
from trainbox.workbench.result import ARCHIVE, BUILDING, MODEL, OUTPUT, commit, install, may_replace, put_aside
from trainbox.workbench.summary import summarise
from trainbox.workbench.tree import prepare

_STDOUT = 1
_STDERR = 2
_UMASK = 0o077
#: 128 + SIGINT, what a shell says of a command that Ctrl-C ended.
_INTERRUPTED = 130
#: What its help shows.
EXAMPLES = (
    "trainbox run xgboost --channel train=data/train --channel validation=data/validation --hp num_round=100",
    "trainbox run train.py --channel train=data --hp epochs=3 --out result",
    "trainbox run train.py --channel train=data --out result --overwrite",
    "trainbox run train.py --channel train=data --hosts 2 --processes 2",
    "trainbox run train.py --channel train=data --docker",
    "trainbox run -m package.train -- config.yaml --compile",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `trainbox run`."""
    add = parser.add_argument
    add("script", nargs="?", metavar="SCRIPT_OR_NAME", help="a file of yours, or a bundled script by its name")
    add("-m", dest="module", metavar="MODULE", help="in place of a script: a module, as `python -m` runs it from here")
    _add_given_arguments(parser)
    add("--processes", type=int, metavar="N", help="processes per host, with RANK and WORLD_SIZE as torchrun sets them")
    add("--job-name", metavar="J", help="default: the script's name and the time")
    add("--out", metavar="DIR", help=f"where the result goes (default ./{RESULTS}/JOB)")
    add("--source-dir", metavar="D", help="the source that goes with the script (default: the script's directory)")
    _add_course_arguments(parser)
    _add_container_arguments(parser)
    add("--dry-run", action="store_true", help="print what would be done, and do nothing")
    parser.epilog = "What stands behind `--` is handed to the script as it is, behind the hyperparameters."
    parser.set_defaults(raw_arguments=())


def _add_given_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--channel",
        action="append",
        default=[],
        metavar="NAME=PLACE[,OPTION…]",
        help="a directory, a file or s3://BUCKET/PREFIX as an input channel; options: sharded, pipe, fastfile,"
        " manifest=FILE, attributes=NAME,…, content_type=TYPE, record_wrapper=RecordIO, groups=GROUP,…",
    )
    add(
        "--hp",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a hyperparameter, as plain text; or KEY=@FILE, a secret",
    )
    add(
        "--hp-env",
        action="append",
        default=[],
        metavar="KEY[=VAR]",
        help="a hyperparameter that is a secret in this shell",
    )
    add(
        "--env",
        action="append",
        default=[],
        metavar="KEY[=VALUE]",
        help="a variable of the container; or KEY, as in this shell",
    )
    add(
        "--hosts",
        type=read_hosts,
        default=Hosts(1),
        metavar="N",
        help="how many hosts, algo-1 to algo-N (default 1); or instance groups: workers=2,evaluators=1",
    )


def _add_course_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--max-run", type=float, metavar="S", help="stop after so many seconds, as MaxRuntimeInSeconds does")
    add("--stop-after", type=float, metavar="S", help="stop after so many seconds, as StopTrainingJob does")
    rank = "at its step STEP (a rehearsal, for scripts with a session of trainbox.torch)"
    add("--kill", action="append", default=[], metavar="RANK@STEP", help=f"SIGKILL a rank {rank}")
    add("--freeze", action="append", default=[], metavar="RANK@STEP", help=f"SIGSTOP a rank {rank}")
    add(
        "--preflight",
        choices=("off", "fast", "full"),
        help="check the hosts' health before the script, as the cloud does for several processes (default: off here)",
    )
    add("--fresh", action="store_true", help="install the requirements anew, not from an earlier run")
    add("--resume", action="store_true", help="the next attempt of the job in DIR, on the same checkpoints")
    add("--overwrite", action="store_true", help="a new job in DIR: the result of an earlier one is removed first")


def _add_container_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--docker",
        nargs="?",
        const=DEFAULT_IMAGE,
        metavar="IMAGE",
        help=f"run each host in a container of an image (default {DEFAULT_IMAGE}); write it behind SCRIPT_OR_NAME",
    )
    add(
        "--as-sagemaker",
        action="store_true",
        help="with --docker: root, the engine's capabilities and a network, as SageMaker gives them (default: your"
        " user, no capabilities, the image read-only, no network for one host)",
    )
    add(
        "--network",
        choices=NETWORKS,
        help="with --docker: the hosts reach nobody, each other, or what this machine reaches (default: the first that"
        " will do; bridge where pip has something to install)",
    )
    add("--keep", action="store_true", help="with --docker: leave containers and network, and say their names")


def run(args: argparse.Namespace) -> int:
    """Run one job; the exit code is 0, that of the host that failed first, or 130 after Ctrl-C.

    Raises:
        TrainboxError: What was asked for cannot be done.
    """
    env = read_environment()
    # What this writes is for its user alone; the script's files are as the user's shell has them.
    umask = os.umask(_UMASK)
    try:
        return _run(args, env, umask)
    finally:
        os.umask(umask)


def _run(args: argparse.Namespace, env: Mapping[str, str], umask: int) -> int:
    request = read_request(args, env=env, cwd=Path.cwd(), now=dt.datetime.now(dt.UTC), umask=umask)
    plan = plan_run(request, find_overlay(request, fresh=args.fresh))
    if args.dry_run:
        previews = {
            host.name: preview(host, request.source, request.script, request.hide, in_image=request.in_image)
            for host in plan.hosts
        }
        sys.stdout.buffer.write(describe(plan, previews).encode())
        sys.stdout.flush()
        return 0
    attempt = _Attempt(plan)
    if request.out.parent.name == RESULTS.name:
        keep_out_of_git(request.out.parent)
    with claimed(request.out, request.previous or request.replaced):
        install(request.out)
        if request.replaced is not None:
            attempt.remove_replaced()
        return attempt.run()


class _Attempt:
    """One attempt of a job, from its first file to its summary."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.out = plan.request.out
        self.hidden = plan.request.secrets
        self.curves = Curves()
        screen = Screen(_STDOUT)
        self.pen = find_pen(cast("TextIO", screen), plan.request.inherited)
        self.live = Live(
            [host.name for host in plan.hosts],
            self.curves,
            out=screen,
            notes=Screen(_STDERR),
            pen=self.pen,
            remaining=Remaining(find_total(plan.request.script, plan.request.hyperparameters)),
        )
        self.screen = screen
        self.seconds: dict[str, float] = {}
        self.failed: str | None = None
        self.is_told = False
        self.record = first_record(plan)

    def remove_replaced(self) -> None:
        """Remove the result that this job replaces, once nothing of it runs any more."""
        with Interrupts() as interrupts:
            self._take_over(interrupts)
        remove_result(self.out)

    def run(self) -> int:
        """Every phase, each with its time; whatever happens, `job.json` says how it ended."""
        self._say_choices()
        if self.plan.request.previous is not None:
            keep_record(self.plan.request.previous, self.out)
            keep_earlier_logs(self.out, self.plan.attempt)
        write_record(self.record, self.out)
        try:
            end = self._train()
        except RunError as error:
            # Not the script's doing: the job was never started, or could not be kept.
            reason = without_secrets(f"InternalServerError: {error.message}", self.hidden)
            self._finish(JobEnd("Failed", "Failed", RunError.exit_code, reason))
            raise
        try:
            problem = self._collect(end)
        except (RunError, KeyboardInterrupt) as error:
            exit_code = RunError.exit_code if isinstance(error, RunError) else _INTERRUPTED
            self._finish(msgspec.structs.replace(end, exit_code=exit_code))
            if isinstance(error, KeyboardInterrupt):
                self.live.say(f"interrupted while collecting: what the hosts left is in {self.plan.work}")
                return exit_code
            raise
        if problem is not None:
            raise problem
        try:
            self._summarise()
        except (MemoryError, ImportError) as error:  # what is loaded late may find no memory: the result stands
            self.live.say(f"the summary cannot be shown ({type(error).__name__}): the result is in {self.out}")
        return end.exit_code

    def _say_choices(self) -> None:
        request = self.plan.request
        self.live.say(request.isolation.sentence)
        for note in self.plan.notes:
            self.live.say(note)
        if self.plan.removed:
            self.live.say(f"not passed on, being another job's: {', '.join(self.plan.removed)}")
        if request.previous is not None:
            self.live.say(f"attempt {self.plan.attempt} of {request.job_name}, on its checkpoints")
        elif request.replaced is not None:
            self.live.say(f"the result of job {request.replaced.job_name!r} ({request.replaced.status}) was removed")
        elif request.resume:
            self.live.say(f"there is nothing to resume in {self.out}: this is attempt 1")

    def _train(self) -> JobEnd:
        started = time.monotonic()
        with Interrupts() as interrupts:
            self._take_over(interrupts)
            fetch_inputs(self.plan, self.live, lambda: bool(interrupts.count))
            prepare(self.plan, has_inputs=not interrupts.count)
            self.seconds["prepare"] = time.monotonic() - started
            started = time.monotonic()
            try:
                ended = Ended(hosts=(), stop="interrupt") if interrupts.count else self._run_hosts(interrupts)
            finally:
                self.live.close()
                self.seconds["train"] = time.monotonic() - started
                self._disarm()
        self.record = msgspec.structs.replace(self.record, hosts=host_records(ended))
        self.failed = ended.failed
        code = 128 + interrupts.first if interrupts.first is not None else None
        stopped = self._stopped_by_others(ended)
        failure = self._failure(ended)
        self.is_told = self._has_told(failure)
        return conclude(ended, failure, interrupt_exit_code=code, was_stopped=stopped)

    def _disarm(self) -> None:
        # Not what hosts cannot have written: a shard may be another name of the user's own file.
        for place in (*(host.tree for host in self.plan.hosts), self.plan.checkpoints):
            try:
                disarm(place)
            except OSError as error:
                self.live.say(f"error: files in {place} may run as their owner: {error.filename}: {error.strerror}")

    def _stopped_by_others(self, ended: Ended) -> bool:
        """Whether a host of a job that nothing here has stopped was stopped all the same; says which."""
        if ended.stop is not None or ended.failed is not None:
            return False
        logs = {host.name: self.out / "logs" / f"{host.name}.log" for host in ended.hosts}
        stops = {name: number for name, log in logs.items() if (number := stop_in(last_bytes(log)))}
        for name, number in stops.items():
            self.live.say(f"{name} was stopped by {number}, which trainbox run did not send: the job is stopped")
        return bool(stops)

    def _take_over(self, interrupts: Interrupts) -> None:
        image = self.plan.request.isolation.image
        if self.plan.request.previous is None and self.plan.request.replaced is None:
            return
        if image is None:
            await_earlier(self.plan, self.live, interrupts)
        else:
            from trainbox.workbench.resources import remove_earlier  # noqa: PLC0415 - loads docker

            remove_earlier(self.plan, image, self.live)

    def _run_hosts(self, interrupts: Interrupts) -> Ended:
        isolation = self.plan.request.isolation
        with pipes_written(self.plan, self.live) as listener:
            if isolation.image is None or isolation.confinement is None:
                return run_hosts_of(self.plan, listener, interrupts)
            from trainbox.workbench.containers import run_containers  # noqa: PLC0415 - loads docker

            return run_containers(self.plan, isolation.image, isolation.confinement, listener, interrupts)

    def _has_told(self, failure: str) -> bool:
        """Whether the one host has ended its log, which was shown, with the reason of the failure."""
        if not failure or len(self.plan.hosts) > 1:
            return False
        log = last_bytes(self.out / "logs" / f"{self.plan.hosts[0].name}.log").decode(errors="replace")
        return as_lines("FAILED: " + failure.partition("\n")[0]) in log

    def _failure(self, ended: Ended) -> str:
        """What the host that failed wrote into its failure file; else what is known of its end."""
        host = next((host for host in ended.hosts if host.name == ended.failed), None)
        if host is None:
            return ""
        left = f"{host.name} left no failure file: its last words are in {self.out / 'logs' / host.name}.log"
        return self._failure_file(host.name).strip("\0 \n") or host.reason or left

    def _failure_file(self, host: str) -> str:
        trees = {plan.name: plan.tree for plan in self.plan.hosts}
        said = b""
        with contextlib.suppress(OSError):  # none, or a link, a FIFO: the host's own log says how it ended
            said = read_below(trees[host], "output/failure", LARGEST_FAILURE_BYTES)
        return without_secrets(said.decode(errors="replace"), self.hidden)

    def _collect(self, end: JobEnd) -> RunError | None:
        """Build the result and put it in place, or aside where that of an earlier attempt is better.

        Returns:
            Why there is no archive of the model, where there is none.
        """
        started = time.monotonic()
        model, problem = self._build()
        kept = not may_replace(end.status, has_model=model is not None, record=self.record)
        if not kept:
            self.record = msgspec.structs.replace(self.record, result=self.plan.attempt, model=model)
        self.seconds["collect"] = time.monotonic() - started
        if problem is not None:
            end = msgspec.structs.replace(end, exit_code=RunError.exit_code)
        # Here a signal would come between two renames.
        with Interrupts():
            if kept:
                aside = put_aside(self.out, self.plan.attempt)
                self._finish(end)
                self._say_kept(end, aside)
            else:
                self.record = self._ended(end)
                commit(self.record, self.out)
                install(self.out)
        # A container that is kept can be started again: it needs what is mounted into it.
        if not self.plan.request.keep:
            remove(self.plan.work)
        if problem is None:
            return None
        place = self.out / (f"{MODEL}.attempt-{self.plan.attempt}" if kept else MODEL)
        by_hand = shlex.join(["tar", "-czf", str(self.out / ARCHIVE), "-C", str(place), "."])
        return RunError(problem.message, hint=f"the model itself is whole in {place}; free some space, then: {by_hand}")

    def _build(self) -> tuple[ModelRecord | None, RunError | None]:
        """Merge what the hosts left below the work directory, and pack the model."""
        building = self.plan.work / BUILDING
        try:
            building.mkdir()
        except OSError as error:
            raise RunError(f"{building} cannot be written: {error.strerror}") from error
        trees = [(host.name, host.tree) for host in self.plan.hosts]
        # The failure file of the host that failed first is the job's; the others' lie beside it.
        outputs = sorted(((name, tree / OUTPUT) for name, tree in trees), key=lambda each: each[0] != self.failed)
        clashes = tuple(clash for clash in merge(outputs, building / OUTPUT) if clash.path != "failure")
        clashes += merge([(name, tree / MODEL) for name, tree in trees], building / MODEL)
        for clash in clashes:
            self.live.say(
                f"error: hosts wrote different {clash.path}: that of {clash.kept} kept the name,"
                f" the others are {', '.join(clash.others)}"
            )
        self.record = msgspec.structs.replace(self.record, clashes=clashes)
        try:
            model, left_out = archive(building / MODEL, building / ARCHIVE)
        except RunError as error:
            return None, error
        for path in left_out:
            self.live.say(f"{path} is no file, directory or link: not in {ARCHIVE}")
        return model, None

    def _say_kept(self, end: JobEnd, aside: Sequence[str]) -> None:
        earlier, attempt = self.record.result, self.plan.attempt
        left = f"; what attempt {attempt} left is in {' and '.join(aside)}" if aside else ""
        self.live.say(
            f"attempt {attempt} ({end.status}) left no better model:"
            f" {MODEL}, {ARCHIVE} and {OUTPUT} are still those of attempt {earlier}{left}"
        )

    def _finish(self, end: JobEnd) -> None:
        self.record = self._ended(end)
        write_record(self.record, self.out)

    def _ended(self, end: JobEnd) -> JobRecord:
        return msgspec.structs.replace(
            self.record,
            status=end.status,
            secondary_status=end.secondary_status,
            exit_code=end.exit_code,
            failure_reason=end.failure_reason,
            seconds=Seconds(**{phase: round(seconds, 3) for phase, seconds in self.seconds.items()}),
            metrics=joined(self.record.metrics, self.curves.all()),
            final=self.curves.final,
        )

    def _summarise(self) -> None:
        request, checkpoints = self.plan.request, self.plan.checkpoints
        count = sum(1 for _ in checkpoints.iterdir()) if checkpoints.is_dir() else 0
        pictures = find_pictures(self.out) if self.record.result == self.record.attempt else ()
        text = summarise(request, self.record, checkpoints=count, pen=self.pen, pictures=pictures, is_told=self.is_told)
        text += next_lines(request, self.record, pictures, checkpoints=count)
        self.screen.write(without_secrets(text, self.hidden))
