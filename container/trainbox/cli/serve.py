"""The verb `trainbox serve MODEL`: an endpoint on this machine, as SageMaker would have it."""

import argparse
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from trainbox.contract.job import read_environment
from trainbox.contract.model_card import ModelCard, read_card
from trainbox.contract.text import visible
from trainbox.errors import DataError, RunError
from trainbox.local.backends.engine import DEFAULT_IMAGE
from trainbox.local.endpoints.many_models import MODELS, all_unpacked, find_models, load_all
from trainbox.local.endpoints.model_source import find_source, unpacked
from trainbox.local.endpoints.runtime_server import answering_runtime
from trainbox.local.endpoints.sample_request import curl_command, make_request, schema_line
from trainbox.local.endpoints.server import Server, await_end, await_ready
from trainbox.local.endpoints.server_container import serving_container
from trainbox.local.endpoints.server_plan import ServerPlan, plan_server
from trainbox.local.endpoints.server_process import find_port, serving_process
from trainbox.local.interrupts import Interrupts
from trainbox.local.results.result import MODEL

_DEFAULT_PORT = 8080
#: What its help shows.
EXAMPLES = (
    "trainbox serve trainbox-out/xgboost-20260101-120000",
    "trainbox serve model.tar.gz --port 8081 --workers 2",
    "trainbox serve model.tar.gz --docker",
    "trainbox serve model.tar.gz --runtime-port 8081",
    "trainbox serve models/ --multi-model",
    "trainbox serve model/ --env SAGEMAKER_INFERENCE_OUTPUT=predicted_label,probability",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add_model_argument(parser)
    parser.add_argument(
        "--port",
        type=int,
        default=_DEFAULT_PORT,
        metavar="P",
        help=f"of 127.0.0.1 ({_DEFAULT_PORT} by default); 0 is any that is free",
    )
    parser.add_argument(
        "--runtime-port",
        type=int,
        metavar="P",
        help="a port that also answers boto3's sagemaker-runtime: invoke_endpoint, and that with a response stream",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one for each processor)")
    parser.add_argument(
        "--multi-model",
        action="store_true",
        help="MODEL is a folder of models, which share the endpoint: each is asked by the name of its file or folder",
    )
    add_docker_argument(parser)
    add_env_argument(parser)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the argument that names a model."""
    parser.add_argument(
        "model", metavar="MODEL", help="a folder with a model, a model.tar.gz, or the result folder of `trainbox run`"
    )


def add_docker_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the flag for an endpoint in a container."""
    parser.add_argument(
        "--docker",
        nargs="?",
        const=DEFAULT_IMAGE,
        default="",
        metavar="IMAGE",
        help=f"a container of this image ({DEFAULT_IMAGE} by default) instead of a process; write it behind MODEL",
    )


def add_env_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the flag for variables of an endpoint."""
    parser.add_argument(
        "--env", action="append", default=[], metavar="KEY=VALUE", help="a variable of the endpoint (repeatable)"
    )


def read_variables(given: Sequence[str]) -> dict[str, str]:
    """Read the values of `--env`.

    Raises:
        RunError: One is not of the form KEY=VALUE.
    """
    pairs = [text.partition("=") for text in given]
    for (key, sign, _), text in zip(pairs, given, strict=True):
        if not key or not sign:
            raise RunError(f"--env {text!r} is not of the form KEY=VALUE")
    return {key: value for key, _, value in pairs}


def read_card_of(model_dir: Path) -> ModelCard | None:
    """Read the card of a model; None where it has none, and the server knows the model otherwise."""
    try:
        return read_card(model_dir)
    except DataError:
        return None


def serving(plan: ServerPlan, env: Mapping[str, str]) -> AbstractContextManager[Server]:
    """Return a context in which the server of a plan runs."""
    return serving_container(plan, env) if plan.image else serving_process(plan)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C; 0.

    Raises:
        TrainboxError: The model cannot be found or unpacked, or the endpoint ended by itself.
    """
    given, env = read_variables(args.env), read_environment()
    if args.multi_model:
        return _serve_many(args, given, env)
    with Interrupts() as stop, unpacked(find_source(Path(args.model))) as root:
        port = _find_port(args)
        plan = plan_server(root, port=port, workers=args.workers, given=given, inherited=env, image=args.docker)
        with _answering_runtime(args, plan.url) as runtime, serving(plan, env) as server:
            if await_ready(server, plan.url, is_stopped=lambda: bool(stop.count)):
                print(visible(_how_to_ask(read_card_of(root / MODEL), plan.url, runtime)), flush=True)
                await_end(server, is_stopped=lambda: bool(stop.count))
    return 0


def _serve_many(args: argparse.Namespace, given: Mapping[str, str], env: Mapping[str, str]) -> int:
    """Serve the models of a folder until Ctrl-C; 0.

    Raises:
        TrainboxError: A model cannot be found or unpacked, or the endpoint ended by itself.
    """
    models = find_models(Path(args.model))
    variables = {"SAGEMAKER_MULTI_MODEL": "true", **given}
    with Interrupts() as stop, all_unpacked(models) as root:
        port = _find_port(args)
        plan = plan_server(
            root, port=port, workers=args.workers, given=variables, inherited=env, image=args.docker, mounted=MODELS
        )
        with _answering_runtime(args, plan.url) as runtime, serving(plan, env) as server:
            if await_ready(server, plan.url, is_stopped=lambda: bool(stop.count)):
                lines = load_all(plan, models)
                ask = f"ask any of them:\n  trainbox invoke FILE --model NAME --url {plan.url}"
                print(visible("\n".join([*lines, *_ready_lines(plan.url, runtime), ask])), flush=True)
                await_end(server, is_stopped=lambda: bool(stop.count))
    return 0


def _find_port(args: argparse.Namespace) -> int:
    port = find_port(args.port)
    if args.runtime_port == port:
        raise RunError(f"--port and --runtime-port are both {port}", hint="--runtime-port 0 takes any that is free")
    return port


@contextlib.contextmanager
def _answering_runtime(args: argparse.Namespace, url: str) -> Iterator[str]:
    """Answer boto3's runtime inside the block where that was asked for; yields its URL, or nothing."""
    if args.runtime_port is None:
        yield ""
        return
    with answering_runtime(args.runtime_port, url) as runtime:
        yield runtime


def _ready_lines(url: str, runtime: str) -> list[str]:
    lines = [f"{url} is ready; Ctrl-C ends it"]
    if runtime:
        lines.append(f'boto3.client("sagemaker-runtime", endpoint_url="{runtime}") asks it under any EndpointName')
    return lines


def _how_to_ask(card: ModelCard | None, url: str, runtime: str) -> str:
    lines = _ready_lines(url, runtime)
    request = make_request(card) if card is not None else None
    if card is not None:
        lines.append(schema_line(card))
    if request is not None:
        lines += ["ask it:", f"  {curl_command(request, url)}"]
    else:
        lines += ["ask it:", f"  trainbox invoke FILE --url {url}"]
    return "\n".join(lines)
