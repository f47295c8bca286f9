"""What `trainbox run … --dry-run` prints, without what belongs to this machine: places, processors, free ports."""

import argparse
import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import msgspec

from tests.frozen.jobs import CPU_TORCH
from tests.frozen.plans import normalised
from trainbox.cli import run
from trainbox.cli.run_command import read_command
from trainbox.cli.screen.dry_run import describe
from trainbox.contract.environment import Machine
from trainbox.local import preview as previews
from trainbox.local.backends.confinement import Confinement
from trainbox.local.backends.engine import Image
from trainbox.local.backends.isolation import Isolation, in_containers
from trainbox.local.plan import plan_run
from trainbox.local.request import read_request

PRIVATE = Isolation(kind="root", at_opt_ml=True, can_name_hosts=True)
NOTHING = Isolation(reason="no private mounts here (not permitted)")
CONTAINERS = in_containers(
    Image("trainbox:cpu", memory=16_000_000_000), Confinement(network="internal", user="1000:1000")
)
_STARTED = dt.datetime(2026, 11, 29, 8, 30, tzinfo=dt.UTC)


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """A command line, below a directory that has a script, a shell script and data."""

    command: tuple[str, ...]
    isolation: Isolation = PRIVATE
    env: Mapping[str, str] = msgspec.field(default_factory=lambda: {"PATH": "/usr/bin", "SM_HPS": "{}", "RANK": "3"})
    machine: Machine = CPU_TORCH


_DATA = ("--channel", "train=data", "--channel", "validation=one.csv")

DRY_RUNS: dict[str, DryRun] = {
    "script": DryRun(command=("train.py", *_DATA, "--hp", "eta=0.1", "--env", "MINE=1", "--job-name", "frozen")),
    "two-hosts-two-processes": DryRun(
        command=("train.py", "--hosts", "2", "--processes", "2", "--out", "result", "--max-run", "60")
    ),
    "two-hosts-without-isolation": DryRun(
        command=("train.py", "--hosts", "2", *_DATA, "--job-name", "frozen"), isolation=NOTHING
    ),
    "bundled-xgboost": DryRun(command=("xgboost", *_DATA, "--hp", "num_round=10", "--job-name", "frozen")),
    "bundled-pytorch-with-drills": DryRun(
        command=(
            *("pytorch", *_DATA, "--hosts", "2", "--processes", "2", "--kill", "1@20", "--freeze", "0@40"),
            *("--preflight", "fast", "--stop-after", "30", "--job-name", "frozen"),
        )
    ),
    "shell-script-of-a-source-directory": DryRun(
        command=("run.sh", "--source-dir", "source", "--job-name", "frozen", "--hp", "api_token=not-a-real-token")
    ),
    "in-containers": DryRun(
        command=("train.py", *_DATA, "--hosts", "2", "--job-name", "frozen", "--hp", "trainbox_launcher=torchrun"),
        isolation=CONTAINERS,
    ),
}


def dry_run(case: DryRun, here: Path) -> str:
    """The text, from the command line on; isolation, machine and port are those of the case."""
    for name, text in {
        "train.py": "print('training')\n",
        "data/rows.csv": "1,2\n",
        "one.csv": "1,2\n",
        "source/run.sh": "echo training\n",
        "source/requirements.txt": "example==1.0\n",
    }.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    spec, options = read_command(parser.parse_args([*case.command, "--dry-run"]), env=case.env, cwd=here)
    request = read_request(spec, options, now=_STARTED)
    port = None if request.master_port is None or case.isolation is CONTAINERS else 23456
    request = msgspec.structs.replace(request, isolation=case.isolation, master_port=port)
    plan = plan_run(request)
    with patch.object(previews, "read_machine", lambda **_: case.machine):
        shown = {host.name: previews.preview(host, request.source, request.script) for host in plan.hosts}
    return str(normalised(describe(plan, shown), here))
