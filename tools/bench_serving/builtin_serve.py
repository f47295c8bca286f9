"""The program `serve` of SageMaker's built-in XGBoost, in own words: it imports all that a worker does, and waits.

python -m tools.bench_serving.builtin_serve GUNICORN NGINX_CONF SOCKET WORKERS
"""

import os
import subprocess
import sys

from tools.bench_serving import builtin_xgboost


def main(gunicorn: str, nginx_conf: str, address: str, workers: str) -> None:
    """Start nginx and gunicorn, and end with either."""
    nginx = subprocess.Popen(("nginx", "-c", nginx_conf, "-e", "stderr"))
    options = ("--timeout", "60", "-k", "gevent", "-b", f"unix:{address}", "--log-level", "info")
    count = ("--worker-connections", str(1000 * int(workers)), "-w", workers)
    worker = subprocess.Popen((gunicorn, *options, *count, f"{builtin_xgboost.__name__}:app"))
    while os.wait()[0] not in {nginx.pid, worker.pid}:
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
