"""The verb `trainbox invoke FILE`: ask an endpoint, and show the place of what it refuses."""

import argparse
import sys
from pathlib import Path

from trainbox.errors import DataError, RunError
from trainbox.local.endpoints.content_types import guess_content_type
from trainbox.local.endpoints.endpoint import Endpoint, EndpointAnswer
from trainbox.local.endpoints.refusal import in_words, point_at, read_refusal

_DEFAULT_URL = "http://127.0.0.1:8080"
#: What its help shows.
EXAMPLES = (
    "trainbox invoke rows.csv",
    "trainbox invoke rows.csv --accept application/json",
    "trainbox invoke rows.csv --model berlin.tar.gz",
    "head -1 rows.csv | trainbox invoke - --content-type text/csv --url http://127.0.0.1:8081",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("file", metavar="FILE", help="the body of the request; '-' is stdin")
    parser.add_argument(
        "--content-type", default="", metavar="TYPE", help="of the body; by default what the name of the file says"
    )
    parser.add_argument("--accept", default="", metavar="TYPE", help="of the answer; by default what the model gives")
    parser.add_argument("--model", default="", metavar="NAME", help="which one, of an endpoint of many models")
    parser.add_argument("--url", default=_DEFAULT_URL, help=f"of the endpoint; {_DEFAULT_URL} by default")


def run(args: argparse.Namespace) -> int:
    """Print the answer; 0 for a prediction.

    Raises:
        DataError: The endpoint refuses the request, or fails.
        RunError: It does not answer, or the file cannot be read.
    """
    body = _read(args.file)
    content_type = args.content_type or ("text/csv" if args.file == "-" else guess_content_type(Path(args.file)))
    if not content_type:
        raise RunError(f"the content type of '{args.file}' is unknown", hint="set --content-type text/csv, …")
    answer = Endpoint(args.url).invoke(body, content_type=content_type, accept=args.accept, model=args.model)
    if not answer.is_good:
        raise _refused(answer, body, content_type)
    sys.stdout.buffer.write(answer.body)
    if sys.stdout.isatty() and not answer.body.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.flush()
    return 0


def _read(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise RunError(f"'{name}' cannot be read: {error.strerror}") from error


def _refused(answer: EndpointAnswer, body: bytes, content_type: str) -> DataError:
    refusal = read_refusal(answer)
    lines = [in_words(answer, refusal), *point_at(refusal, body, content_type)]
    if refusal.id:
        lines.append(f"  id: {refusal.id}, in the endpoint's log, too")
    return DataError("\n".join(lines), hint=refusal.hint)
