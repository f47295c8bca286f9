"""The command `trainbox`: one verb per module, each loaded only when it is called."""

import argparse
import gc
import importlib
import sys
from collections.abc import Collection, Sequence
from typing import Protocol, cast

from trainbox import __version__
from trainbox.contract.credentials.secrets import without_secrets
from trainbox.contract.text import did_you_mean, visible
from trainbox.errors import ResourceError, RunError, TrainboxError
from trainbox.files import permission_hint

#: The verbs, with the module of each and the line that help shows.
VERBS = {
    "run": ("trainbox.cli.run", "run a training job on this machine, as SageMaker would"),
    "tune": ("trainbox.cli.tune", "search for the best hyperparameters, with jobs on this machine as trials"),
    "serve": ("trainbox.cli.serve", "serve a model on this machine, as a SageMaker endpoint would"),
    "invoke": ("trainbox.cli.invoke", "ask an endpoint, and show the place of what it refuses"),
    "transform": ("trainbox.cli.transform", "predict for whole files, as SageMaker's batch transform would"),
    "describe": ("trainbox.cli.describe", "show the hyperparameters a script takes, or what a model takes and gives"),
    "metrics": ("trainbox.cli.metrics", "print the MetricDefinitions of a script, or check them on a log"),
    "health": ("trainbox.health.command", "check this machine, or all hosts of a job, before or beside training"),
    "completion": ("trainbox.cli.completion", "print what makes a shell complete these words"),
    "train": ("trainbox.supervisor.train", "what SageMaker starts in the container: run the job below /opt/ml"),
}
#: What the help of the command itself shows.
EXAMPLES = (
    "trainbox run xgboost --channel train=data/train --hp num_round=100",
    "trainbox describe xgboost",
    "trainbox run --help",
)
#: What argparse ends with, too.
_USAGE_ERROR = 2


class VerbModule(Protocol):
    """What the module of a verb offers."""

    #: Commands that its help shows.
    EXAMPLES: Sequence[str]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the result goes to stdout, the return value is the exit code."""


def main() -> int:
    """Run one verb.

    Returns:
        Its exit code; that of the `TrainboxError` that stopped it; 2 for arguments nobody understands.
    """
    arguments = sys.argv[1:]
    if arguments[:1] == ["train"]:
        from trainbox.supervisor import train  # noqa: PLC0415 - it reads its own, empty, command line

        del sys.argv[1]
        return train.main()
    chosen = arguments[0] if arguments else ""
    gc.disable()  # what is loaded stays: to look through it, now and at the end, would be a fifth of the start
    parser, verb, flags = _parser_for(chosen)
    gc.freeze()
    gc.enable()
    # Argparse would take what stands behind it for the script of a job.
    place = arguments.index("--") if chosen in ("run", "tune") and "--" in arguments else len(arguments)
    unknown = find_unknown(arguments[:place], flags)
    if unknown:
        sys.stderr.write(visible(f"trainbox: {without_secrets(unknown, ())}\n"))
        return _USAGE_ERROR
    args = parser.parse_args(arguments[:place])
    if place < len(arguments):
        args.raw_arguments = arguments[place + 1 :]
    if verb is None:
        parser.print_help()
        return _USAGE_ERROR
    return _run(verb, args)


def _run(verb: VerbModule, args: argparse.Namespace) -> int:
    """Run it; what stops it is told in a line or two."""
    try:
        return verb.run(args)
    except TrainboxError as error:
        sys.stderr.write(visible(f"trainbox: {without_secrets(str(error), ())}\n"))
        return error.exit_code
    except MemoryError:
        sys.stderr.write("trainbox: out of memory\n  hint: free some, or raise the limit of this shell (ulimit -v)\n")
        return ResourceError.exit_code
    except PermissionError as error:  # also of a look whether something is there
        sys.stderr.write(visible(f"trainbox: {error.filename}: {error.strerror}\n  hint: {permission_hint(error)}\n"))
        return RunError.exit_code
    except BrokenPipeError:  # `trainbox metrics … | head`
        sys.stderr.close()
        return 0


def find_unknown(arguments: Sequence[str], flags: Collection[str]) -> str:
    """Pure: what to say of a verb or a flag that there is not; empty where all are known.

    Argparse would take what stands behind an unknown flag for the name of a script.

    Args:
        arguments: Of the command line.
        flags: Those of the verb, or of `trainbox` itself.
    """
    verb = arguments[0] if arguments else "-"
    if not verb.startswith("-") and verb not in VERBS:
        like = did_you_mean(verb, VERBS)
        hint = f"the verbs: {', '.join(VERBS)}; a script: trainbox run {verb}"
        return f"there is no verb {verb!r}{like}\n  hint: {hint}"
    called = f"trainbox {verb}" if verb in VERBS else "trainbox"
    lines = []
    for flag in dict.fromkeys(word.partition("=")[0] for word in arguments if word.startswith("--") and word != "--"):
        if not any(known.startswith(flag) for known in flags):
            like = did_you_mean(flag, [known for known in flags if known.startswith("--")], prefix="--")
            lines.append(f"{called} has no flag {flag}{like}")
    return "\n".join([*lines, f"  hint: {called} --help lists them"]) if lines else ""


def _parser_for(chosen: str) -> tuple[argparse.ArgumentParser, VerbModule | None, Collection[str]]:
    """The parser of all verbs, of which only the chosen one is loaded, and the flags that it knows."""
    parser = argparse.ArgumentParser(
        prog="trainbox",
        description="Train your own algorithms on Amazon SageMaker, and the same job here.",
        epilog=_shown(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trainbox {__version__}")
    verbs = parser.add_subparsers(metavar="VERB")
    found: VerbModule | None = None
    flags = _flags_of(parser)
    for name, (_, summary) in VERBS.items():
        about = summary[0].upper() + summary[1:] + "."
        verb_parser = verbs.add_parser(
            name, help=summary, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == chosen:
            found = _fill(verb_parser, name)
            flags = _flags_of(verb_parser)
    return parser, found, flags


def _flags_of(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    return tuple(flag for action in parser._actions for flag in action.option_strings)  # noqa: SLF001 - no other way


def _fill(parser: argparse.ArgumentParser, name: str) -> VerbModule:
    """Load a verb, and let it declare its arguments."""
    verb = cast("VerbModule", importlib.import_module(VERBS[name][0]))
    verb.add_arguments(parser)
    parser.epilog = "\n\n".join(filter(None, (parser.epilog, _shown(verb.EXAMPLES))))
    if name == "completion":
        parser.set_defaults(parsers=_parsers)
    return verb


def _parsers() -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """The summary and the parser of each verb, all of them loaded."""
    found = {}
    for name, (_, summary) in VERBS.items():
        parser = argparse.ArgumentParser(prog=f"trainbox {name}")
        if name != "train":  # it takes no arguments
            _fill(parser, name)
        found[name] = summary, parser
    return found


def _shown(examples: Sequence[str]) -> str:
    return "\n".join(["examples:", *(f"  {example}" for example in examples)])


if __name__ == "__main__":
    sys.exit(main())
