"""Writes down what a script is given, once it has met the scripts of the job's other hosts; runs inside the image.

Each host leaves `HOST.json` in the model directory, which in local mode all hosts share. The SDK stops every other host
as soon as the first has ended: so the first of the hosts ends last.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

PORT = 29500
SECONDS = 30


def receive_names(others: int, own: str) -> list[str]:
    """Tell the other hosts the own name of the job and hear theirs; return once all of them have gone."""
    names = []
    with socket.create_server(("", PORT)) as server:
        server.settimeout(SECONDS)
        for _ in range(others):
            connection, _address = server.accept()
            with connection, connection.makefile("rw") as stream:
                stream.write(f"{own}\n")
                stream.flush()
                names += stream.read().split()
    return names


def tell_name(host: str, own: str) -> socket.socket:
    """Connect to the first host, which may start later, and tell it the own name of the job."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            connection = socket.create_connection((host, PORT), timeout=SECONDS)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            connection.sendall(f"{own}\n".encode())
            return connection


def dump(met: list[str]) -> None:
    """Write down everything; PID 1 is `train`, whose environment is the container's."""
    first = Path("/proc/1/environ").read_bytes().decode().split("\0")
    given = {
        "arguments": sys.argv[1:],
        "variables": dict(os.environ),
        "container": dict(entry.split("=", 1) for entry in first if entry),
        "files": {path.name: path.read_text() for path in Path("/opt/ml/input/config").iterdir()},
        "processors": len(os.sched_getaffinity(0)),
        "met": met,
    }
    Path(os.environ["SM_MODEL_DIR"], f"{os.environ['SM_CURRENT_HOST']}.json").write_text(json.dumps(given))


def main() -> None:
    """Meet the others, then write."""
    hosts = json.loads(os.environ["SM_HOSTS"])
    own = os.environ["TRAINING_JOB_NAME"]
    if os.environ["SM_CURRENT_HOST"] == hosts[0]:
        dump(receive_names(len(hosts) - 1, own))
        return
    with tell_name(hosts[0], own) as connection:
        dump([connection.makefile().readline().strip()])


if __name__ == "__main__":
    main()
