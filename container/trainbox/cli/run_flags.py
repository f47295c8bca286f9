"""The flags of `trainbox run`."""

import argparse

from trainbox.local.backends.confinement import NETWORKS
from trainbox.local.backends.engine import DEFAULT_IMAGE
from trainbox.local.inputs.hosts import Hosts, read_hosts
from trainbox.local.request import RESULTS


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
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
