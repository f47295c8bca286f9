"""Turn the command line of `trainbox tune` into the plan of a tuning job."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import msgspec

from trainbox.cli.run_command import read_command
from trainbox.cli.tune_flags import STRATEGIES
from trainbox.tuning.planning.plan_tuning import TuningRequest, plan_tuning
from trainbox.tuning.search_space import Strategy
from trainbox.tuning.tuning_plan import TuningPlan


def read_tuning_command(args: argparse.Namespace, *, env: Mapping[str, str], cwd: Path, umask: int = -1) -> TuningPlan:
    """Turn the command line into a plan.

    Args:
        args: As the flags of `trainbox tune` are parsed.
        env: The environment of this program.
        cwd: Where relative paths begin.
        umask: Of the files that hosts make.

    Raises:
        TrainboxError: What was asked for cannot be done.
    """
    spec, options = read_command(args, env=env, cwd=cwd, umask=umask)
    request = TuningRequest(
        program=args.script or args.module,
        name=args.job_name or "",
        out=options.out,
        ranges=tuple(args.range),
        choices=tuple(args.choice),
        objective=args.objective,
        goal=args.goal,
        metrics=tuple(args.metric),
        trials=args.trials,
        parallel=args.parallel,
        strategy=cast("Strategy", STRATEGIES[args.strategy]),
        early_stop=args.early_stop,
        seed=args.seed,
        resource=args.resource,
        warm_start=tuple(args.warm_start),
        resume=args.resume,
        # What only prints may have the name of a search that was run.
        overwrite=args.overwrite or (args.print is not None and not args.resume),
    )
    return plan_tuning(request, spec, msgspec.structs.replace(options, owns_children=False))
