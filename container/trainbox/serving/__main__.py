"""The loader of `serve`: loads the model once, and forks the workers. The supervisor starts it, nobody else does."""

import argparse
import sys

from trainbox.contract.hosting import read_hosting
from trainbox.contract.job import read_environment
from trainbox.serving.loader import run


def main() -> int:
    """Load the model and fork workers until the supervisor asks for the end."""
    parser = argparse.ArgumentParser(prog="trainbox.serving")
    parser.add_argument("--link", type=int, required=True)
    parser.add_argument("--page", type=int, required=True)
    parser.add_argument("--store", type=int, help="for an endpoint of many models")
    given = parser.parse_args()
    hosting = read_hosting(read_environment())
    if given.store is not None:
        from trainbox.serving.multi import models_loader  # noqa: PLC0415 - a server of one model does without

        return models_loader.run(hosting, link=given.link, page=given.page, store=given.store)
    return run(hosting, link=given.link, page=given.page)


if __name__ == "__main__":
    sys.exit(main())
