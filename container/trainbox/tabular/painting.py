"""The process that a `Painter` starts: it imports Matplotlib, waits for orders on stdin, and draws them."""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec

from trainbox.tabular import plots
from trainbox.tabular.painter import Curves, Failure, Folds, Importance, Picture

#: The lowest priority (`nice`): XGBoost's threads wait for each other, so to delay one delays all.
_IDLE = 19


def main() -> int:
    """Draw what stdin asks for; 1 where a file could not be written, which stdout says."""
    os.nice(_IDLE)
    plots.load()
    orders = sys.stdin.buffer.read()
    pictures = msgspec.json.decode(orders, type=list[Picture]) if orders else []
    try:
        # Forks of this process, which has Matplotlib.
        with ProcessPoolExecutor(max(1, len(pictures)), get_context("fork")) as pool:
            list(pool.map(_draw, pictures))
    except OSError as error:
        failure = Failure(error.errno or 0, error.strerror or str(error), error.filename and str(error.filename))
        sys.stdout.buffer.write(msgspec.json.encode(failure))
        return 1
    return 0


def _draw(picture: Picture) -> None:
    path = Path(picture.path)
    match picture:
        case Curves():
            curves = {name: (steps, plots.numbers(values)) for name, (steps, values) in picture.curves.items()}
            plots.draw_curves(path, curves, step=picture.step, selected=picture.selected)
        case Folds():
            plots.draw_folds(path, picture.curves, step=picture.step)
        case Importance():
            importance = dict(zip(picture.importance, plots.numbers(picture.importance.values()), strict=True))
            plots.draw_importance(path, importance, kind=picture.kind)


if __name__ == "__main__":
    sys.exit(main())
