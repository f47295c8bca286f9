"""How the supervisor is loaded: without what it never needs, and that is there afterwards all the same."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

LOAD = """
import sys

import pytest
from trainbox.launch.__main__ import load
names = ("uuid", "decimal", "urllib.parse", "_decimal", "_uuid", "platform", "typing_extensions", "textwrap")
names += ("msgspec.inspect", "msgspec._json_schema", "datetime", "ntpath")
before = {name for name in names if name in sys.modules}
load()
print(*sorted({name for name in names if name in sys.modules} - before))
"""
AFTERWARDS = """
import pathlib
print(pathlib.Path("/a b").as_uri())
import datetime, decimal, urllib.parse, uuid
import msgspec, msgspec.inspect
print(msgspec.json.schema(int), msgspec.inspect.type_info(int))
print(uuid.UUID(int=7), decimal.Decimal("1.50"), urllib.parse.quote("a b"))
print(msgspec.json.decode(b'"2026-11-27T10:00:00Z"', type=datetime.datetime).tzinfo is datetime.timezone.utc)
print(pathlib.PureWindowsPath("c:/a").drive)
"""
ASKED_FOR_MORE = """
import sys

import pytest
from trainbox.launch.__main__ import _stand_ins
sys.modules.update(_stand_ins())
from uuid import NAMESPACE_DNS
from urllib.parse import urlsplit
import decimal, ntpath
from datetime import UTC, datetime
print(NAMESPACE_DNS.version, urlsplit("s3://bucket/key").netloc, decimal.ROUND_HALF_UP)
print(datetime(2026, 1, 1, tzinfo=UTC).isoformat(), ntpath.join("a", "b"))
import uuid
print(uuid.UUID is type(NAMESPACE_DNS), sys.modules["uuid"] is uuid)
"""


def run(code: str) -> list[str]:
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return answer.stdout.splitlines()


def test_the_supervisor_loads_nothing_of_what_stands_in_for() -> None:
    assert run(LOAD) == [""]


def test_what_was_stood_in_for_can_be_imported_afterwards() -> None:
    assert run(LOAD + AFTERWARDS)[1:] == [
        "file:///a%20b",
        "{'type': 'integer'} IntType(gt=None, ge=None, lt=None, le=None, multiple_of=None)",
        "00000000-0000-0000-0000-000000000007 1.50 a%20b",
        "True",
        "c:",
    ]


def test_whoever_asks_for_more_gets_the_module() -> None:
    assert run(ASKED_FOR_MORE) == [
        "1 bucket ROUND_HALF_UP",
        "2026-01-01T00:00:00+00:00 a\\b",
        "True True",
    ]
