"""The command `trainbox`: one verb per module, each loaded only when it is called."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from trainbox import __version__
from trainbox.contract.text import visible
from trainbox.errors import ResourceError, TrainboxError

#: The verbs, with the module of each and the line that help shows.
VERBS = {
    "run": ("trainbox.workbench.run", "run a training job on this machine, as SageMaker would"),
    "describe": ("trainbox.workbench.describe", "show the hyperparameters a script takes"),
    "metrics": ("trainbox.workbench.show_metrics", "print the MetricDefinitions of a script, or check them on a log"),
    "health": ("trainbox.health.command", "check this machine, or all hosts of a job, before or beside training"),
    "completion": ("trainbox.workbench.completion", "print what makes a shell complete these words"),
    "train": ("trainbox.launch.train", "what SageMaker starts in the container: run the job below /opt/ml"),
}
#: What the help of the command itself shows.
EXAMPLES = (
    "trainbox run xgboost --channel train=data/train --hp num_round=100",
    "trainbox describe xgboost",
    "trainbox run --help",
)


class Verb(Protocol):
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
        from trainbox.launch import train  # noqa: PLC0415 - it reads its own, empty, command line

        del sys.argv[1]
        return train.main()
    parser, verb = _parser_for(arguments[0] if arguments else "")
    if arguments[:1] == ["run"] and "--" in arguments:
        # Argparse would take what stands there for the script of trainbox run.
        place = arguments.index("--")
        args = parser.parse_args(arguments[:place])
        args.raw_arguments = arguments[place + 1 :]
    else:
        args = parser.parse_args(arguments)
    if verb is None:
        parser.print_help()
        return 2
    try:
        return verb.run(args)
    except TrainboxError as error:
        from trainbox.contract.secrets import without_secrets  # noqa: PLC0415 - only an error needs it

        sys.stderr.write(visible(f"trainbox: {without_secrets(str(error), ())}\n"))
        return error.exit_code
    except MemoryError:
        sys.stderr.write("trainbox: out of memory\n  hint: free some, or raise the limit of this shell (ulimit -v)\n")
        return ResourceError.exit_code
    except BrokenPipeError:  # `trainbox metrics … | head`
        sys.stderr.close()
        return 0


def _parser_for(chosen: str) -> tuple[argparse.ArgumentParser, Verb | None]:
    """The parser of all verbs, of which only the chosen one is loaded."""
    parser = argparse.ArgumentParser(
        prog="trainbox",
        description="Train your own algorithms on Amazon SageMaker, and the same job here.",
        epilog=_shown(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trainbox {__version__}")
    verbs = parser.add_subparsers(metavar="VERB")
    found: Verb | None = None
    for name, (_, summary) in VERBS.items():
        about = summary[0].upper() + summary[1:] + "."
        verb_parser = verbs.add_parser(
            name, help=summary, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == chosen:
            found = _fill(verb_parser, name)
    return parser, found


def _fill(parser: argparse.ArgumentParser, name: str) -> Verb:
    """Load a verb, and let it declare its arguments."""
    verb = cast("Verb", importlib.import_module(VERBS[name][0]))
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
