"""The Docker engine of this machine: reached, asked what it has, and its refusals said in a person's words.

The package `docker` is imported here alone, and only when somebody asks for containers.
"""

import contextlib
import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainbox.errors import RunError

if TYPE_CHECKING:
    from docker import APIClient
    from docker.types import Mount

#: What `make image` builds.
DEFAULT_IMAGE = "trainbox:cpu"
#: On all that `trainbox run` makes; `docker ps --filter label=trainbox.job` shows it.
LABEL = "trainbox.job"
_HOW_IS_IT = "'docker info' and 'docker system df' say how the engine and its disk are"
#: For giving many files away; a command that takes longer hangs.
_ONCE_SECONDS = 600
#: Of what it says.
_ONCE_LINES = 1000
_LIST_SCRIPTS = "from trainbox.supervisor.program.choice import bundled_scripts; print(*bundled_scripts(), sep='\\n')"
#: HTTP: not found; and a conflict, which is how the engine calls a container that does not run or is being removed.
_GONE = frozenset({404, 409})


class Image(msgspec.Struct, frozen=True):
    """An image that can run here, and what the engine gives its containers."""

    name: str
    #: Of the machine the engine runs on, in bytes.
    memory: int = 0
    #: Whether the engine belongs to a user, who then is root in its containers.
    rootless: bool = False
    #: Whether it can pass GPUs to containers.
    gpus: bool = False
    #: Which other architecture the image is for, if it has to be emulated.
    emulated: str = ""

    @property
    def shm_bytes(self) -> int:
        """The limit of a host's `/dev/shm`, as large as Linux makes it outside containers: half of the memory.

        Docker's 64 MB end the first PyTorch job whose data loader has workers, for these share their batches there:
        https://docs.pytorch.org/docs/stable/multiprocessing.html. Nothing is set aside: it is a limit.
        """
        return self.memory // 2

    @property
    def sentence(self) -> str:
        """What the containers get, in one line."""
        emulated = f", for {self.emulated} and so emulated, slowly" if self.emulated else ""
        gpus = ", all GPUs" if self.gpus else ""
        return (
            f"each host is a container of {self.name}{emulated}, its inputs read-only,"
            f" /dev/shm up to {self.shm_bytes / 1e9:.1f} GB (half of the memory, for data loaders with workers){gpus}"
        )


def connect(env: Mapping[str, str]) -> "APIClient":
    """The engine that `DOCKER_HOST` names, or the one of this machine.

    Raises:
        RunError: It does not answer, or not to this user.
    """
    try:
        import docker  # noqa: PLC0415 - 0.1 s, for those alone who ask for containers
    except ModuleNotFoundError as error:
        raise RunError(
            "docker, the package through which --docker asks the engine, is not installed:"
            " pip install 'trainbox[local]'"
        ) from error
    with asking("answer"):
        return docker.APIClient(version="auto", **docker.utils.kwargs_from_env(environment=dict(env)))


@contextlib.contextmanager
def asking(what: str, *, hint: str = _HOW_IS_IT) -> Iterator[None]:
    """While entered, what goes wrong at the engine becomes a `RunError`.

    Args:
        what: What the engine is asked to do, as an infinitive.
        hint: What to do about a refusal.
    """
    from docker.errors import APIError, DockerException  # noqa: PLC0415
    from requests.exceptions import RequestException  # noqa: PLC0415

    try:
        yield
    except APIError as error:
        said = str(error.explanation or error).strip()
        raise RunError(f"the Docker engine refuses to {what}: {said}", hint=hint) from error
    except (DockerException, RequestException, OSError) as error:
        raise _unreachable(what, error) from error


def _unreachable(what: str, error: BaseException) -> RunError:
    number = _errno(error)
    if number in {errno.EACCES, errno.EPERM}:
        return RunError(
            "no permission to talk to the Docker engine",
            hint="'sudo usermod -aG docker $USER' and a new login give it; without --docker the job runs in processes",
        )
    if number in {errno.ENOENT, errno.ECONNREFUSED}:
        return RunError(
            "no Docker engine answers",
            hint="'tools/docker-engine start' (in a checkout) or 'sudo systemctl start docker' starts one; DOCKER_HOST"
            " names one elsewhere ('docker context inspect' shows that of Docker Desktop)",
        )
    return RunError(f"the Docker engine did not {what}: {error}", hint="'docker info' says whether it is well")


def _errno(error: BaseException) -> int | None:
    """The number of the system call's failure at the root of an error; each library wraps the one below."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        found = pending.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, OSError) and found.errno is not None:
            return found.errno
        pending += [*found.args, found.__cause__, found.__context__, getattr(found, "reason", None)]
    return None


def find_image(name: str, env: Mapping[str, str]) -> Image:
    """Ask the engine for an image; nothing is pulled.

    Raises:
        RunError: No engine answers, it does not have the image, or cannot run it.
    """
    client = connect(env)
    with contextlib.closing(client):
        with asking("describe itself"):
            info, version = client.info(), client.version()
        found = _inspect(client, name)
        has, wants = str(version["Arch"]), str(found.get("Architecture") or version["Arch"])
        image = Image(
            name=name,
            memory=int(info["MemTotal"]),
            rootless="name=rootless" in (info.get("SecurityOptions") or ()),
            gpus="nvidia" in (info.get("Runtimes") or {}),
            emulated=wants if wants != has else "",
        )
        if image.emulated and not _runs(client, name):
            raise RunError(
                f"the image {name} is for {wants}, this machine is {has}, and nothing here emulates the other",
                hint=f"build it for this one: docker build --platform linux/{has} …",
            )
        return image


def _inspect(client: "APIClient", name: str) -> Mapping[str, Any]:
    from docker.errors import ImageNotFound  # noqa: PLC0415

    try:
        with asking(f"look for the image {name!r}", hint="write it as NAME:TAG"):
            return dict(client.inspect_image(name))
    except RunError as error:
        if not isinstance(error.__cause__, ImageNotFound):
            raise
        way = "'make image' builds it" if name == DEFAULT_IMAGE else f"'docker pull {name}' or 'docker build' brings it"
        raise RunError(f"there is no image {name!r} here, and trainbox run pulls none", hint=way) from error


def _runs(client: "APIClient", name: str) -> bool:
    """Whether a program of the image can be executed at all: it can where the machine emulates its architecture."""
    try:
        return run_once(client, name, ["true"]) == 0
    except RunError:
        return False


def list_scripts(name: str, env: Mapping[str, str]) -> tuple[str, ...] | None:
    """Ask an image which scripts it has by a name.

    Returns:
        Their names; None where its Python has no trainbox.

    Raises:
        RunError: No engine answers, or it does not have the image.
    """
    with contextlib.closing(connect(env)) as client:
        _inspect(client, name)
        try:
            code, said = _once(client, name, ["python3", "-I", "-c", _LIST_SCRIPTS])
        except RunError:
            return None
    return None if code else tuple(said.decode(errors="replace").split())


def has_file(name: str, path: Path, env: Mapping[str, str]) -> bool:
    """Ask an image whether it has a file.

    Raises:
        RunError: No engine answers, it does not have the image, or that has no program `test`.
    """
    with contextlib.closing(connect(env)) as client:
        _inspect(client, name)
        return run_once(client, name, ["test", "-f", str(path)]) == 0


def run_once(
    client: "APIClient",
    image: str,
    command: Sequence[str],
    *,
    mounts: Sequence["Mount"] = (),
    capabilities: Sequence[str] = (),
) -> int:
    """Run one command in a container, as root without network or rights but those named, and remove it.

    Returns:
        The exit code.

    Raises:
        RunError: The engine cannot start it.
    """
    return _once(client, image, command, mounts=mounts, capabilities=capabilities)[0]


def _once(
    client: "APIClient",
    image: str,
    command: Sequence[str],
    *,
    mounts: Sequence["Mount"] = (),
    capabilities: Sequence[str] = (),
) -> tuple[int, bytes]:
    """The exit code, and what it wrote on stdout, up to a limit."""
    from docker.types import LogConfig  # noqa: PLC0415

    config = client.create_host_config(
        network_mode="none",
        mounts=list(mounts),
        cap_drop=["ALL"],
        cap_add=list(capabilities),
        security_opt=["no-new-privileges"],
        read_only=True,
        log_config=LogConfig(type="json-file", config={"max-size": "1m"}),
    )
    # Only the image's programs are wanted, not what its ENTRYPOINT makes of arguments.
    options = {"entrypoint": list(command), "user": "0:0", "host_config": config, "labels": {LABEL: "(none)"}}
    with asking(f"run {command[0]!r} in {image}"):
        made = client.create_container(image, [], **options)
        try:
            client.start(made)
            code = int(client.wait(made, timeout=_ONCE_SECONDS)["StatusCode"])
            return code, bytes(client.logs(made, stdout=True, stderr=False, tail=_ONCE_LINES))
        finally:
            client.remove_container(made, force=True, v=True)


@contextlib.contextmanager
def unless_gone() -> Iterator[None]:
    """While entered, what somebody else has removed or ended already is no error; what follows is left out."""
    from docker.errors import APIError  # noqa: PLC0415

    try:
        yield
    except APIError as error:
        if error.status_code not in _GONE:
            raise
