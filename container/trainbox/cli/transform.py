"""The verb `trainbox transform MODEL`: batch transform on this machine, as SageMaker does it."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from trainbox.cli.serve import add_docker_argument, add_env_argument, read_variables, serving
from trainbox.contract.job import read_environment
from trainbox.contract.text import printable, visible
from trainbox.errors import RunError
from trainbox.local.endpoints.content_types import guess_content_type
from trainbox.local.endpoints.endpoint import Endpoint
from trainbox.local.endpoints.model_source import find_source, unpacked
from trainbox.local.endpoints.server import await_ready
from trainbox.local.endpoints.server_plan import plan_server
from trainbox.local.endpoints.server_process import find_port
from trainbox.local.interrupts import SIGNALS
from trainbox.local.run_job import INTERRUPTED
from trainbox.local.transform.options import TransformOptions, batch_variables, check_options, make_plan
from trainbox.local.transform.requests import ask_execution_parameters
from trainbox.local.transform.run_transform import Input, Transformed, find_inputs, run_transform

#: What its help shows.
EXAMPLES = (
    "trainbox transform model.tar.gz --input rows.csv --output predictions --split Line --assemble Line",
    "trainbox transform model/ --input rows/ --output predictions --split Line --assemble Line --join Input",
    "trainbox transform model/ … --input-filter '$[1:]' --join Input --output-filter '$[0,-1]'",
    "trainbox transform http://127.0.0.1:8080 --input images/ --output predictions --content-type image/png",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="a folder with a model, a model.tar.gz, the result folder of `trainbox run`,"
        " or http://… for an endpoint that runs already",
    )
    add("--input", required=True, metavar="PLACE", help="a file, or a directory with files")
    add("--output", required=True, metavar="DIR", help="where INPUT.out of each input goes")
    add("--content-type", default="", metavar="TYPE", help="of the inputs (default: what their names say)")
    add("--accept", default="", metavar="TYPE", help="of the answers (default: what the model gives)")
    add("--split", choices=("None", "Line", "RecordIO"), default="None", help="how an input is split into records")
    add("--strategy", choices=("MultiRecord", "SingleRecord"), help="how many records a request has")
    add("--max-payload", type=int, metavar="MB", help="of a request, at most 100; 0 sends each input in one, chunked")
    add("--assemble", choices=("None", "Line"), default="None", help="Line: one line for each record")
    add("--join", choices=("None", "Input"), default="None", help="Input: write each record with its answer behind it")
    add("--input-filter", default="$", metavar="PATH", help="JSONPath: what of a record the model is sent")
    add("--output-filter", default="$", metavar="PATH", help="JSONPath: what of the joined record is written")
    add("--workers", type=int, metavar="N", help="requests at the same time (MaxConcurrentTransforms)")
    add_docker_argument(parser)
    add_env_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Transform all inputs; 0, or 130 after Ctrl-C, which leaves no half of a file.

    Raises:
        TrainboxError: The job cannot be done, or some inputs failed.
    """
    inputs = find_inputs(Path(args.input), Path(args.output))
    options = TransformOptions(
        content_type=args.content_type or _common_type(inputs),
        accept=args.accept,
        strategy=args.strategy,
        max_payload_mb=args.max_payload,
        workers=args.workers,
        split=args.split,
        assemble=args.assemble,
        join=args.join,
        input_filter=args.input_filter,
        output_filter=args.output_filter,
    )
    check_options(options)
    try:
        with _raising(), _endpoint(args, options, read_environment()) as endpoint:
            plan = make_plan(options, ask_execution_parameters(endpoint))
            print(plan, flush=True)
            run_transform(inputs, plan, endpoint, _report)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _common_type(inputs: Sequence[Input]) -> str:
    """The media type that the names of all inputs say.

    Raises:
        RunError: They say different ones, or none.
    """
    first = guess_content_type(inputs[0].source)
    for each in inputs:
        found = guess_content_type(each.source)
        if not found or found != first:
            why = f"is {found}, and {inputs[0].source} {first}" if found else "has a name that says no content type"
            raise RunError(f"the input {each.source} {why}", hint="set --content-type text/csv, …")
    return first


def _report(done: Transformed) -> None:
    place, target = printable(str(done.input.source)), printable(str(done.input.target))
    if done.error is None:
        rows = f": {done.rows:,} rows" if done.rows else ""
        print(visible(f"{place} -> {target}{rows}"), flush=True)
    else:
        sys.stderr.write(visible(f"trainbox: {place}: {done.error}\n"))


@contextlib.contextmanager
def _endpoint(args: argparse.Namespace, options: TransformOptions, env: Mapping[str, str]) -> Iterator[Endpoint]:
    """Give the endpoint of a model, started for this job, or the one that runs already."""
    given = read_variables(args.env)
    if "://" in args.model:
        for flag, value in (("--env", given), ("--docker", args.docker)):
            if value:
                raise RunError(f"{flag} does not reach an endpoint that runs already", hint="give it to trainbox serve")
        with contextlib.closing(Endpoint(args.model)) as endpoint:
            yield endpoint
        return
    with unpacked(find_source(Path(args.model))) as root:
        variables = {**given, **batch_variables(options)}
        plan = plan_server(root, port=find_port(), workers=None, given=variables, inherited=env, image=args.docker)
        with serving(plan, env) as server, contextlib.closing(Endpoint(plan.url)) as endpoint:
            await_ready(server, plan.url, is_stopped=lambda: False)
            yield endpoint


@contextlib.contextmanager
def _raising() -> Iterator[None]:
    """While entered, what would end this program ends it in order, as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
