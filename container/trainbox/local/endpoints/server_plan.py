"""Which program serves a model on this machine, and with which variables. Pure."""

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from trainbox.contract.layout import ROOT_VARIABLE
from trainbox.errors import RunError
from trainbox.local.backends import namespace
from trainbox.local.results.result import MODEL

LOOPBACK = "127.0.0.1"
#: Of the shell: a person's, not the endpoint's. What --env gives counts.
_FOREIGN = ("SAGEMAKER_", "SM_")
#: Set here, and so not with --env.
_OURS = ("SAGEMAKER_BIND_TO_PORT", "TRAINBOX_BIND_ADDRESS", ROOT_VARIABLE)


class ServerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint is started: a process, or a container where an image is named."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    port: int
    #: The tree that the process has as `/opt/ml`; a container has its model alone.
    root: Path
    image: str = ""
    #: What of the tree a container has.
    mounted: str = MODEL

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self.port}"


def plan_server(
    root: Path,
    *,
    port: int,
    workers: int | None,
    given: Mapping[str, str],
    inherited: Mapping[str, str],
    image: str = "",
    mounted: str = MODEL,
) -> ServerPlan:
    """Plan the program `serve` for a tree that has the model.

    Args:
        root: The tree.
        port: On loopback.
        workers: Processes; None for what the server chooses.
        given: Variables of the endpoint.
        inherited: The environment of `trainbox` itself, of which a container has nothing.
        image: The image of the container; empty for a process.
        mounted: What of the tree a container has.

    Raises:
        RunError: A variable is given that is set here.
    """
    taken = [name for name in _OURS if name in given]
    if taken:
        raise RunError(f"--env {taken[0]} is set by trainbox serve", hint="--port sets the port")
    variables = {**({"SAGEMAKER_MODEL_SERVER_WORKERS": str(workers)} if workers is not None else {}), **given}
    if image:
        return ServerPlan(argv=("serve",), environment=variables, port=port, root=root, image=image, mounted=mounted)
    environment = {name: value for name, value in inherited.items() if not name.startswith(_FOREIGN)}
    environment |= {**variables, ROOT_VARIABLE: str(root)}
    environment |= {"SAGEMAKER_BIND_TO_PORT": str(port), "TRAINBOX_BIND_ADDRESS": LOOPBACK}
    # It gets SIGTERM when this program dies, however it dies.
    server = (sys.executable, "-P", "-m", "trainbox.supervisor.serve")
    argv = namespace.started_in(namespace.spec("none", ()), server)
    return ServerPlan(argv=argv, environment=environment, port=port, root=root)
