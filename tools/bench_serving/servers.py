"""The servers that are measured: started, waited for, and what they use."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tools.bench import REPOSITORY, BrokenError

INCUMBENT = REPOSITORY / ".venv-serving" / "bin"
PATIENCE_S = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")
#: As sagemaker-containers 2.8.6 has it (`etc/nginx.conf.template`).
_NGINX = """\
{user}worker_processes auto;
daemon off;
pid {directory}/nginx.pid;
error_log stderr;
worker_rlimit_nofile 4096;
events {{ worker_connections 2048; }}
http {{
  access_log {directory}/access.log combined;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  upstream gunicorn {{ server unix:{directory}/gunicorn.sock; }}
  server {{
    listen 127.0.0.1:{port} deferred;
    client_max_body_size 0;
    keepalive_timeout 60;
    keepalive_requests 1000000;
    location ~ ^/(ping|invocations|execution-parameters) {{
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header Host $http_host;
      proxy_redirect off;
      proxy_read_timeout 60s;
      proxy_pass http://gunicorn;
    }}
  }}
}}
"""


class Paths(NamedTuple):
    """What a server is started with."""

    #: A tree as of /opt/ml, with the model below `model`.
    root: Path
    #: A scratch directory.
    scratch: Path


class Used(NamedTuple):
    """What the processes of a server use, all together."""

    cpu_seconds: float
    rss_mb: tuple[float, ...]
    pss_mb: tuple[float, ...]
    #: Of the process that answers.
    worker_rss_mb: float


class Server:
    """One that runs, with all its processes."""

    def __init__(self, name: str, port: int, processes: list["subprocess.Popen[bytes]"]) -> None:
        self.name, self.port, self.processes = name, port, processes
        self.began = time.monotonic()
        self.ready_after = 0.0

    def pids(self) -> list[int]:
        """All its processes, each generation after its parents, so that a worker is the last."""
        numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        parents = {pid: int(fields[1]) for pid in numbers if (fields := _stat(pid))}
        found = [process.pid for process in self.processes]
        for pid in found:  # it grows meanwhile
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def used(self) -> Used:
        """Processor seconds so far, of ended children too, and memory now, the largest process first."""
        cpu, rss, pss = 0.0, [], []
        for pid in self.pids():
            if fields := _stat(pid):
                cpu += sum(int(fields[place]) for place in range(11, 15)) / _TICKS
                memory = _memory(pid)
                rss.append(memory.get("Rss", 0) / 1024)
                pss.append(memory.get("Pss", 0) / 1024)
        return Used(cpu, tuple(sorted(rss, reverse=True)), tuple(sorted(pss, reverse=True)), rss[-1])

    def forget_peak(self) -> None:
        """Have the kernel count the most memory that the worker has had anew."""
        Path(f"/proc/{self.pids()[-1]}/clear_refs").write_text("5")

    def worker_peak_mb(self) -> float:
        """The most memory that the worker has had since."""
        lines = Path(f"/proc/{self.pids()[-1]}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024

    def wait(self) -> None:
        """Wait until `/ping` answers 200.

        Raises:
            BrokenError: It does not come to it.
        """
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if any(process.poll() is not None for process in self.processes):
                raise BrokenError(f"{self.name} has ended: {[process.returncode for process in self.processes]}")
            if self.asks("/health" if self.name == "LitServe" else "/ping"):
                self.ready_after = time.monotonic() - self.began
                return
            time.sleep(0.02)
        raise BrokenError(f"{self.name} is not ready after {PATIENCE_S:g} s")

    def asks(self, path: str) -> bool:
        """Whether a GET is answered with 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def end(self) -> None:
        """Kill all of it."""
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self.processes:
            process.wait()


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _memory(pid: int) -> dict[str, int]:
    """Of /proc/PID/smaps_rollup, in KiB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}


def _start(command: tuple[str | Path, ...], env: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as file:
        whole = {"PATH": os.environ["PATH"], "HOME": str(log.parent), **env}
        return subprocess.Popen(command, env=whole, stdout=file, stderr=file, start_new_session=True, cwd=REPOSITORY)


def start_ours(port: int, paths: Paths, workers: int) -> list["subprocess.Popen[bytes]"]:
    """The program `serve`."""
    env = {
        "TRAINBOX_ROOT": str(paths.root),
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "SAGEMAKER_MODEL_SERVER_WORKERS": str(workers),
        "TRAINBOX_MAX_BODY_MB": "100",  # the largest table has 28 MB
    }
    return [_start((Path(sys.executable).parent / "serve",), env, paths.scratch / "ours.log")]


def start_builtin(port: int, paths: Paths, workers: int) -> list["subprocess.Popen[bytes]"]:
    """The path of SageMaker's built-in XGBoost: its `serve`, nginx, a socket, gunicorn with gevent, Flask."""
    directory = Path(tempfile.mkdtemp(prefix="nginx-", dir=paths.scratch))
    (directory / "nginx.conf").write_text(
        _NGINX.format(user="user root;\n" if os.geteuid() == 0 else "", directory=directory, port=port)
    )
    env = {**_model(paths), "MAX_CONTENT_LENGTH": str(2**30), "PYTHONWARNINGS": "ignore"}
    program = (INCUMBENT / "python", "-m", "tools.bench_serving.builtin_serve", INCUMBENT / "gunicorn")
    command = (*program, directory / "nginx.conf", directory / "gunicorn.sock", str(workers))
    return [_start(command, env, paths.scratch / "builtin.log")]


def start_mms(port: int, paths: Paths, workers: int) -> list["subprocess.Popen[bytes]"]:
    """`sagemaker-inference` on Multi Model Server, with the options that it gives to that."""
    model = Path(tempfile.mkdtemp(prefix="mms-", dir=paths.scratch)) / "model"
    (model / "code").mkdir(parents=True)
    shutil.copy(paths.root / "model" / "xgboost-model", model)
    shutil.copy(Path(__file__).with_name("mms_inference.py"), model / "code" / "inference.py")
    config = model.with_name("mms.properties")
    config.write_text(
        "enable_envvars_config=true\ndecode_input_request=false\nload_models=ALL\ndefault_response_timeout=60\n"
        f"default_workers_per_model={workers}\ninference_address=http://127.0.0.1:{port}\n"
        f"management_address=http://127.0.0.1:{port}\n"
        "default_service_handler=sagemaker_inference.default_handler_service\n"
    )
    env = {
        "SAGEMAKER_BASE_DIR": str(model.parent),
        "PYTHONPATH": f"{model / 'code'}:{REPOSITORY}",
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "TEMP": str(model.parent),
        "TMPDIR": str(model.parent),
        "LOG_LOCATION": str(model.parent),
        "METRICS_LOCATION": str(model.parent),
        "PATH": f"{INCUMBENT}:{os.environ['PATH']}",
    }
    command = (INCUMBENT / "multi-model-server", "--start", "--foreground", "--model-store", "/")
    options = ("--mms-config", config, "--models", f"model={model}")
    return [_start((*command, *options), env, paths.scratch / "mms.log")]


def _model(paths: Paths) -> dict[str, str]:
    return {"BENCH_MODEL": str(paths.root / "model" / "xgboost-model"), "OMP_NUM_THREADS": "1"}


def start_uvicorn(port: int, paths: Paths, workers: int) -> list["subprocess.Popen[bytes]"]:
    """An application by hand on uvicorn."""
    return _start_uvicorn("plain_uvicorn", port, paths, workers)


def start_echo(port: int, paths: Paths, workers: int) -> list["subprocess.Popen[bytes]"]:
    """An application on uvicorn that does nothing."""
    return _start_uvicorn("echo", port, paths, workers)


def _start_uvicorn(name: str, port: int, paths: Paths, workers: int) -> list["subprocess.Popen[bytes]"]:
    command = (INCUMBENT / "uvicorn", "--port", str(port), "--workers", str(workers), "--no-access-log")
    options = ("--log-level", "warning", f"tools.bench_serving.{name}:app")
    return [_start((*command, *options), _model(paths), paths.scratch / f"{name}.log")]


def start_lit(port: int, paths: Paths, workers: int) -> list["subprocess.Popen[bytes]"]:
    """LitServe; its own number of workers."""
    del workers
    command = (INCUMBENT / "python", "-m", "tools.bench_serving.lit", str(port))
    return [_start(command, _model(paths), paths.scratch / "litserve.log")]


SERVERS: Mapping[str, Callable[[int, Paths, int], list["subprocess.Popen[bytes]"]]] = {
    "trainbox": start_ours,
    "built-in XGBoost": start_builtin,
    "uvicorn by hand": start_uvicorn,
    "LitServe": start_lit,
    "MMS": start_mms,
    "echo": start_echo,
}


def _free_port() -> int:
    """A port that nothing listens on; MMS takes none above 32767."""
    for port in range(10_000 + os.getpid() % 20_000, 32_000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise BrokenError("there is no free port")


@contextmanager
def started(name: str, paths: Paths, workers: int = 1) -> Iterator[Server]:
    """A server of `SERVERS` that answers; it is killed in the end."""
    port = _free_port()
    server = Server(name, port, SERVERS[name](port, paths, workers))
    try:
        server.wait()
        yield server
    finally:
        server.end()
