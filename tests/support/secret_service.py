"""Secrets Manager and the Parameter Store on loopback, as far as one reads from them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, ClassVar

PASSWORD = "of-Secrets-Manager/1"
KEY = "of-the-Parameter-Store+2"
ARN = "arn:aws:secretsmanager:ap-south-1:123456789012:secret:prod/db-a1b2c3"


class _Service(BaseHTTPRequestHandler):
    """Secrets Manager and the Parameter Store, as far as one reads from them."""

    secrets: ClassVar[Mapping[str, dict[str, Any]]] = {
        "db": {"SecretString": json.dumps({"password": PASSWORD, "port": 5432})},
        ARN: {"SecretString": json.dumps({"password": PASSWORD})},
        "plain": {"SecretString": PASSWORD},
        "bytes": {"SecretBinary": "AAEC"},
        "NUL": {"SecretString": "a\0b"},
    }

    parameters: ClassVar[Mapping[str, str]] = {"/team/key": KEY, "/team/style": "equals", "/team/peers": "ab" * 32}

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Service)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        action = self.headers["X-Amz-Target"].partition(".")[2]
        region = self.headers["Authorization"].partition("Credential=")[2].split("/")[2]
        server.asked.append((action, asked, region))
        if asked.get("SecretId") == "slow":
            server.hold.wait()
            return
        code, answer = self._answer(action, asked)
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, action: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = asked.get("SecretId") or asked["Name"]
        if name == "denied":
            return 400, {"__type": "AccessDeniedException", "message": "User: me is not authorized"}
        if action == "GetSecretValue" and name in self.secrets:
            return 200, {"Name": name, **self.secrets[name]}
        if action == "GetParameter" and name in self.parameters and asked["WithDecryption"]:
            return 200, {"Parameter": {"Name": name, "Value": self.parameters[name]}}
        return 400, {"__type": "ResourceNotFoundException", "message": "it is not there"}

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name
        """Say nothing."""


class Service(ThreadingHTTPServer):
    """It runs while a test does, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Service)
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        #: Until then one of its secrets has no answer.
        self.hold = Event()

    @property
    def env(self) -> dict[str, str]:
        address = f"http://127.0.0.1:{self.server_port}"
        return {
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": address,
            "AWS_ENDPOINT_URL_SSM": address,
            "AWS_ACCESS_KEY_ID": "AKIA-of-the-test",
            "AWS_SECRET_ACCESS_KEY": "of-the-test",
            "AWS_REGION": "eu-west-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def serving() -> "Iterator[Service]":
    with Service() as running:
        Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield running
        finally:
            running.hold.set()
            running.shutdown()
