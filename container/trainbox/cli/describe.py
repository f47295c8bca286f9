"""The verb `trainbox describe SCRIPT`: the hyperparameters of a script, as a table or as JSON schema."""

import argparse
import json
import sys

from trainbox.cli.screen.pens import print_table
from trainbox.contract import params
from trainbox.contract.job import read_environment
from trainbox.local.scripts.script_module import find_params, find_script, load_script

#: What its help shows.
EXAMPLES = (
    "trainbox describe xgboost | less",
    "trainbox describe train.py --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the verb."""
    parser.add_argument("script", metavar="SCRIPT", help="a Python file, or the name of a bundled script")
    parser.add_argument("--json", action="store_true", help="print the JSON schema instead of the table")


def run(args: argparse.Namespace) -> int:
    """Print the hyperparameters of the script."""
    params_type = find_params(load_script(find_script(args.script), metrics=False))
    if args.json:
        print(json.dumps(params.json_schema(params_type), indent=2))
        return 0
    rows = [
        (field.name, field.type, "(required)" if field.required else field.default, field.range, field.description)
        for field in params.fields(params_type)
    ]
    print_table(sys.stdout, read_environment(), ("NAME", "TYPE", "DEFAULT", "RANGE", "DESCRIPTION"), rows)
    return 0
