"""What `trainbox describe` shows of a model."""

import sys
from collections.abc import Mapping
from pathlib import Path

from trainbox.cli.screen.pens import print_table
from trainbox.contract.model_card import encode_card
from trainbox.errors import RunError
from trainbox.local.endpoints.model_source import find_source, unpacked
from trainbox.local.endpoints.model_summary import as_rows, feature_rows, summarise_model
from trainbox.serving.bodies.media_types import IMAGE_TYPES, INPUT_TYPES, OUTPUT_TYPES


def describe_model(path: Path, env: Mapping[str, str], *, as_json: bool) -> int:
    """Print what the files of a model say; nothing of it is loaded or run.

    Raises:
        TrainboxError: There is no model that can be served, or it cannot be read.
    """
    with unpacked(find_source(path)) as root:
        summary = summarise_model(root, path)
    card = summary.found.card
    if as_json:
        if card is None:
            raise RunError(f"{path} has no model card", hint="another program has trained it: without --json its files")
        sys.stdout.write(encode_card(card).decode() + "\n")
        return 0
    takes = IMAGE_TYPES if card is not None and len(card.shape) > 1 else INPUT_TYPES
    rows = [*as_rows(summary), ("takes", ", ".join(takes)), ("gives", ", ".join(OUTPUT_TYPES))]
    print_table(sys.stdout, env, ("ABOUT", "VALUE"), [row for row in rows if row[1]])
    if card is not None:
        shown = feature_rows(card)
        print()
        print_table(sys.stdout, env, ("COLUMN", "NAME", "TYPE", "VALUES"), shown)
        if card.features.count > len(shown):
            print(f"and {card.features.count - len(shown):,} more: --json has them all")
    return 0
