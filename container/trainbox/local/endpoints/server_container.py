"""An endpoint as a container: `docker run IMAGE serve` with the model read-only, its port on loopback alone."""

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from trainbox.contract.hosting import DEFAULT_PORT
from trainbox.contract.layout import DEFAULT_ROOT
from trainbox.local.backends.engine import LABEL, asking, connect, find_image, unless_gone
from trainbox.local.endpoints.server_plan import LOOPBACK, ServerPlan
from trainbox.local.endpoints.server_process import STOP_SECONDS

if TYPE_CHECKING:
    from docker import APIClient


class ServerContainer:
    """A server that is a container, started and followed.

    Args:
        client: Of the engine.
        container: As the engine calls it.
    """

    def __init__(self, client: "APIClient", container: str) -> None:
        self._client, self._container = client, container
        with asking("attach to the endpoint"):
            frames = client.attach(container, stream=True, logs=True)
        self._has_ended = threading.Event()
        threading.Thread(target=self._relay, args=(frames,), daemon=True).start()

    def _relay(self, frames: Iterator[bytes]) -> None:
        for content in frames:
            sys.stderr.buffer.write(content)
            sys.stderr.flush()
        self._has_ended.set()

    def ending(self) -> str:
        """Return how it ended; empty while it runs."""
        if not self._has_ended.is_set():
            return ""
        with asking("say how the endpoint is"):
            code = self._client.inspect_container(self._container)["State"]["ExitCode"]
        return f"ended with exit code {code}"


@contextlib.contextmanager
def serving_container(plan: ServerPlan, engine_env: Mapping[str, str]) -> Iterator[ServerContainer]:
    """Run a container while entered; afterwards it is stopped as SageMaker does, and removed.

    Args:
        plan: With an image.
        engine_env: `DOCKER_HOST` and its relatives.

    Raises:
        RunError: No engine answers, or it refuses.
    """
    from docker.types import LogConfig, Mount  # noqa: PLC0415 - for those alone who ask for containers

    image = find_image(plan.image, engine_env)
    with contextlib.closing(connect(engine_env)) as client:
        mounted = (plan.root / plan.mounted).resolve()
        config = client.create_host_config(
            mounts=[Mount(str(DEFAULT_ROOT / plan.mounted), str(mounted), "bind", read_only=True)],
            port_bindings={DEFAULT_PORT: (LOOPBACK, plan.port)},
            shm_size=image.shm_bytes,
            security_opt=["no-new-privileges"],
            log_config=LogConfig(type="json-file", config={"max-size": "1m"}),
        )
        with asking("make the endpoint's container"):
            made = client.create_container(
                image.name,
                list(plan.argv),
                ports=[DEFAULT_PORT],
                environment=dict(plan.environment),
                labels={LABEL: "(none)"},
                host_config=config,
            )["Id"]
        try:
            with asking("start the endpoint"):
                client.start(made)
            yield ServerContainer(client, made)
        finally:
            try:
                with asking("stop the endpoint"), unless_gone():
                    client.stop(made, timeout=STOP_SECONDS)
            finally:
                with asking("remove the endpoint"), unless_gone():
                    client.remove_container(made, force=True, v=True)
