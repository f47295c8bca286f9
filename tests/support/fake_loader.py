"""The loader of `serve` with a model that does what a request asks for: the body is a verb and its argument."""

import argparse
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainbox.contract.hosting import Hosting, read_hosting
from trainbox.contract.job import read_environment
from trainbox.data.formats.byte_stream import Readable
from trainbox.serving import connections
from trainbox.serving.loader import run
from trainbox.serving.responder import Request, Response


class Obedient:
    """Answers with its process id unless it is told to do something else."""

    name = "an obedient model"

    def __init__(self, *, joins: bool = False) -> None:
        self.joins = joins

    def check(self) -> None:
        """Nothing can be wrong."""

    def warm_up(self, threads: int) -> None:
        """A worker that has been told to is never ready."""
        if Path("worker-breaks").exists():
            raise RuntimeError(f"no {threads} thread(s) for me")
        if Path("workers-take-long").exists():
            time.sleep(600)

    def answer_together(self, requests: Sequence[Request]) -> list[Response]:
        """Obey, one after the other."""
        return [self.answer(request) for request in requests]

    def execution_parameters(self) -> None:
        """Leave them to the server."""

    def answer_blocks(self, request: Request, body: Readable) -> Response:
        """Read everything, and obey the first part."""
        first = body.read(100)
        while body.read(2**20):
            pass
        return self.answer(Request(request.headers, first, request.id))

    def answer(self, request: Request) -> Response:
        """Obey."""
        verb, _, argument = request.body[:100].decode(errors="replace").partition(" ")
        if verb == "sleep":
            time.sleep(float(argument))
        elif verb == "freeze":  # the whole process, as a library does that never gives the lock back
            ctypes.PyDLL(None).sleep(int(argument))
        elif verb == "fill":
            return Response(200, str(len(b"x" * int(argument))).encode())
        elif verb == "die":
            os.kill(os.getpid(), getattr(signal, argument))
        elif verb == "raise":
            raise ZeroDivisionError("by nothing")
        elif verb == "endless":
            return Response(200, _parts())
        elif verb == "breaking":
            return Response(200, _broken())
        elif verb == "stream":
            return Response(200, (f"part {number}\n".encode() for number in range(int(argument))))
        return Response(200, str(os.getpid()).encode(), rows=1)


def _broken() -> Iterator[bytes]:
    yield b"part\n"
    raise ZeroDivisionError("after the first part")


def _parts() -> Iterator[bytes]:
    """Yield parts until nobody wants them."""
    try:
        while True:
            yield b"part\n" * 1000
    finally:
        print("the stream was closed", file=sys.stderr, flush=True)


def prepare(_hosting: Hosting) -> None:
    """Nothing is asked for."""


def load(hosting: Hosting) -> Obedient:
    """Load as slowly as a file says."""
    model = hosting.model_dir / "obedient"
    print(f"loading {model}", file=sys.stderr, flush=True)
    time.sleep(float(model.read_text()))
    return Obedient(joins=(hosting.model_dir / "joins").exists())


def main() -> int:
    """As `python -m trainbox.serving`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--link", type=int)
    parser.add_argument("--page", type=int)
    given = parser.parse_args()
    if Path("uvicorn-has-changed").exists():
        connections._EXPECTED = ("a_new_argument",)
    return run(read_hosting(read_environment()), link=given.link, page=given.page, prepare=prepare, load=load)


if __name__ == "__main__":
    sys.exit(main())
