"""The verb `trainbox describe WHAT`: the hyperparameters of a script, or what a model takes and gives."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from trainbox.cli.describe_model import describe_model
from trainbox.cli.screen.pens import print_table
from trainbox.contract import params
from trainbox.contract.job import read_environment
from trainbox.local.endpoints.model_source import is_model
from trainbox.local.scripts.script_module import find_params, find_script, load_script
from trainbox.supervisor.program.choice import bundled_scripts

#: What its help shows.
EXAMPLES = (
    "trainbox describe xgboost | less",
    "trainbox describe train.py --json",
    "trainbox describe model.tar.gz",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the verb."""
    parser.add_argument(
        "script",
        metavar="WHAT",
        help="a Python file or the name of a bundled script; or a model: a folder, a model.tar.gz, the folder of a job",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON instead of tables: the schema of a script, the card of a model"
    )


def run(args: argparse.Namespace) -> int:
    """Print the hyperparameters of the script, or what there is to know of the model."""
    env = read_environment()
    # The name of a bundled script wins over a folder of the same name: ./NAME is the folder.
    if is_model(Path(args.script)) and args.script not in _script_names():
        return describe_model(Path(args.script), env, as_json=args.json)
    return _describe_script(args.script, env, as_json=args.json)


def _script_names() -> set[str]:
    return {name for script in bundled_scripts() for name in (script, script.removesuffix("_train"))}


def _describe_script(name: str, env: Mapping[str, str], *, as_json: bool) -> int:
    params_type = find_params(load_script(find_script(name), metrics=False))
    if as_json:
        print(json.dumps(params.json_schema(params_type), indent=2))
        return 0
    rows = [
        (field.name, field.type, "(required)" if field.required else field.default, field.range, field.description)
        for field in params.fields(params_type)
    ]
    print_table(sys.stdout, env, ("NAME", "TYPE", "DEFAULT", "RANGE", "DESCRIPTION"), rows)
    return 0
