"""Bytes of strangers are taken, or refused by declared errors: no other exception, no crash, memory and time bounded.

`make fuzz` feeds the same targets for longer, with other seeds.
"""

import tempfile
from pathlib import Path

import pytest

from tests.support.forks import content, fork, own_environment
from tools.fuzz_parsers.targets import TARGETS, use
from trainbox.comm.framing import encode_header

ROOT = Path(__file__).parents[2]
#: Inputs of each target; fewer where one takes long.
COUNT = 70
COUNTS = {"XGBoost model, JSON": 40, "forest": 40, "forest, description": 40, "Parquet": 50}
_PROGRAM = "import runpy\nrunpy.run_module('tools.fuzz_parsers', run_name='__main__')\n"


def run(*arguments: str) -> tuple[int, str]:
    """The exit status of the program, and what it has said."""
    with tempfile.TemporaryFile() as said:
        ended = fork(
            _PROGRAM,
            argv=["", *arguments],
            environment=own_environment(),
            directory=ROOT,
            stdout=said,
            stderr=said,
        )
        code = ended.wait()
        assert code is not None
        return code, content(said)


@pytest.mark.process
@pytest.mark.parametrize("count", sorted({COUNT, *COUNTS.values()}))
def test_bytes_of_strangers_are_taken_or_refused_as_declared(tmp_path: Path, count: int) -> None:
    """All targets of so many inputs by one process, which names those that do not: to begin takes longer than one."""
    names = [name for name in TARGETS if COUNTS.get(name, COUNT) == count]
    code, said = run(*(f"--target={name}" for name in names), "--count", str(count), "--out", str(tmp_path))
    assert code == 0, said
    assert {f"{name:28} {count:9,} inputs" for name in names} <= {*said.splitlines()}


def _framed(heartbeat: bytes) -> bytes:
    return encode_header(0, "heartbeat", len(heartbeat)) + heartbeat


_CUT_OFF = b'[{"tensor":0},[{"dtype":"float32","shape":[2],"offset":0,"size":8}]]'
#: What was found once: the target, and the input.
FOUND = {
    "text that is not UTF-8 in a greeting": (
        "greeting, framed anew",
        b"\x85\xa4type\xa5hello\xa3job\xa1\xff\xa6member\xa1a\xa4role\xa4data\xa5nonce\xc4\x20" + bytes(32),
    ),
    "text that is not UTF-8 among heartbeats": ("heartbeats", _framed(b"\x81\xa7gave_up\xa1\xff")),
    "a heartbeat nested deeply": ("heartbeats", _framed(b"\x81\xa1x" + b"\x91" * 20_000)),
    "text that is not UTF-8 in a header": ("frame", b"\0\0\0\x0e\x82\xa4call\x01\xa4kind\xa1\xff"),
    "other than bytes in what is gathered": ("gathered values", b"\x92\xc4\0\x01"),
    "text that is not UTF-8 in what is gathered": ("gathered values", b"\x92\xc4\2\xa1\xff\xc4\2\xa1a"),
    "fewer values than members": ("gathered values", b"\x90"),
    "text that is not UTF-8 in a manifest": ("manifest", b'{"format":1,"sha256":"\xff","manifest":{}}'),
    "a manifest nested deeply": ("manifest", b'{"x":' + b"[" * 20_000),
    "a name of a file that is too long": (
        "manifest, sealed anew",
        b'{"step":1,"info":{},"files":{"' + b"x" * 300 + b'":{"size":3,"sha256":""}}}',
    ),
    "an index of too many digits": ("libsvm", b"1 " + b"9" * 5000 + b":1\n"),
    "a group of too many digits": ("libsvm", b"1 qid:" + b"9" * 5000 + b" 1:1\n"),
    "a size of too many digits": ("content type", b"text/csv; label_size=" + b"9" * 5000),
    "a state of a rank that is no pair": ("PyTorch state of a rank", b"\1\0\0\0\0\0\0\x001"),
    "a tensor that is cut off": (
        "PyTorch state of a rank",
        b"%c\0\0\0\0\0\0\0" % len(_CUT_OFF) + _CUT_OFF + b"\1\2\3\4",
    ),
}


@pytest.mark.parametrize(("name", "found"), FOUND.values(), ids=FOUND.keys())
def test_what_was_found_once_is_refused(tmp_path: Path, name: str, found: bytes) -> None:
    target = TARGETS[name]
    use(target, found, tmp_path / "input")
    with pytest.raises(target.errors):  # it is not taken either
        use(target, found, tmp_path / "input", is_honest=True)


@pytest.mark.process
@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("raise KeyError('planted')", "KeyError: 'planted'"),
        ("import os; os.abort()", "the process ended with -6"),
        ("bytearray(2**30)", "MemoryError"),
    ],
    ids=["exception", "crash", "memory"],
)
def test_what_is_found_is_said_with_a_file_that_shows_it_again(tmp_path: Path, act: str, words: str) -> None:
    """The planted fault is in a target of its own: it strikes at one input of many."""
    planted = f"""
import sys
from tools.fuzz_parsers import targets
def planted(content, directory):
    if content == b"b":
        {act}
targets.TARGETS["planted"] = targets.Target(lambda: (b"a", b"b", b"c"), planted, ())
from tools.fuzz_parsers.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    with tempfile.TemporaryFile() as said:
        arguments = ["--target", "planted", "--count", "3", "--out", str(tmp_path)]
        ended = fork(
            planted, argv=["", *arguments], environment=own_environment(), directory=ROOT, stdout=said, stderr=said
        )
        assert (ended.wait(), words in content(said)) == (1, True), content(said)
        assert "planted, seed 1, input 1:" in content(said)
        assert "seed 1: 1 findings" in content(said)
    assert (tmp_path / "planted-1-1.input").read_bytes() == b"b"
