"""`python -m trainbox.health`: the verb `trainbox health` as the supervisor starts it."""

import argparse
import sys

from trainbox.contract.text import visible
from trainbox.errors import TrainboxError
from trainbox.health import command


def main() -> int:
    """Read the command line and run the verb."""
    parser = argparse.ArgumentParser(prog="python -m trainbox.health")
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args())
    except TrainboxError as error:
        sys.stderr.write(visible(f"trainbox: {error}\n"))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
