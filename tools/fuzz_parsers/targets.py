"""Every parser of bytes that strangers may have written, and which errors it may raise: one table.

A target is fed through the function that the job itself calls. What it may raise are the errors of `trainbox.errors`
that the function declares; anything else, a crash, and memory or time without bound is a finding.
"""

import contextlib
import io
import json
import math
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import msgspec

from tools.fuzz_parsers import corpus, requests
from trainbox.checkpoint.manifest import MANIFEST, check_files, decode_info, read_manifest
from trainbox.comm import Communicator, Members
from trainbox.comm.data_connection import DataConnection
from trainbox.comm.framing import HeartbeatConnection
from trainbox.comm.handshake import HandshakeReader
from trainbox.comm.heartbeat import HeartbeatMonitor
from trainbox.comm.tolerant import TolerantCommunicator
from trainbox.contract.cluster.ranks import find_members_beyond, read_port, read_ranks
from trainbox.contract.credentials.checkpoint_keys import read_checkpoint_keys
from trainbox.contract.credentials.peer_key import read_peer_key
from trainbox.contract.credentials.references import fill_in_raw, find_references, read_resolved
from trainbox.contract.environment import Machine, variables
from trainbox.contract.job import read_job
from trainbox.contract.model_card import read_card
from trainbox.data import ColumnSpec, estimate_bytes, read_blocks, read_table
from trainbox.data.formats import Format, parse_body, read_content_type
from trainbox.errors import (
    CheckpointError,
    ContractError,
    DataError,
    MetricError,
    PeerError,
    ProgramError,
)
from trainbox.metrics import Metric, check, definitions, parse_line
from trainbox.supervisor.program.archive import extract

#: Given the input and an empty directory; what it returns does not matter.
Use = Callable[[bytes, Path], object]

_JSON = (
    *b'{ } [ ] , : " null true -1 0 1.5 1e400 "" {} [] \\ud800 \\u0000'.split(),
    *(b"[" * 5000, b'{"a":' * 5000, b'{"x":' + b"[" * 3000, b"\xff", b"9" * 5000),
)
_FRAME = (b"\xa4call", b"\xa4kind", b"\xa6length", b"\xa5clock", b"\xa5leave", b"\xce\xff\xff\xff\xff", b"\0\0\0\x1a")
_LARGEST_FRAME = 1024 * 1024


class Target(msgspec.Struct, frozen=True):
    """One parser."""

    honest: corpus.Corpus
    use: Use
    #: What it may raise.
    errors: tuple[type[Exception], ...]
    #: Of the format, for what chance would not find.
    words: Sequence[bytes] = ()


# ---- what comes over the network ----


def _pair(content: bytes) -> socket.socket:
    """A connection on which these bytes come, and then its end."""
    here, there = socket.socketpair()
    with there:
        there.sendall(content[: 64 * 1024])
    return here


def _greet(content: bytes, _directory: Path) -> None:
    with _pair(content) as connection, contextlib.suppress(ConnectionResetError):  # the end
        reader = HandshakeReader(connection)
        while True:
            reader.receive()


def _hear(content: bytes, _directory: Path) -> None:
    with _pair(content) as connection:
        heartbeats = HeartbeatConnection(connection)
        with contextlib.suppress(ConnectionResetError):  # the end
            while True:
                heartbeats.receive()


def _take_frame(content: bytes, _directory: Path) -> None:
    with _pair(content) as connection:
        DataConnection("algo-2", connection, timeout=1.0).receive("gather", largest=_LARGEST_FRAME)


def _gather(content: bytes, _directory: Path) -> None:
    """What the leader tells; the frames around it are sound."""
    members = Members(("algo-1", "algo-2"), "algo-2", "127.0.0.1", "job")
    monitor = HeartbeatMonitor("algo-2", limit=math.inf)
    here, there = socket.socketpair()
    with here, there, contextlib.closing(monitor):
        DataConnection("algo-2", there, timeout=1.0).send(1, "gather", content)
        mine = DataConnection("algo-1", here, timeout=1.0)
        Communicator(members, monitor, {"algo-1": mine}).gather("me", str)


def _decide(content: bytes, _directory: Path) -> None:
    """What a host sends in a round of the health checks, whose frames may be anything."""
    names = ("algo-1", "algo-2")
    with _pair(content) as connection:
        connections = {"algo-2": DataConnection("algo-2", connection, timeout=1.0)}
        members = Members(names, "algo-1", "127.0.0.1", "job")
        leader = TolerantCommunicator(members, connections, {}, timeout=1.0, clock=time.time, monotonic=time.monotonic)
        leader.decide("me", str, lambda *_: "", str, timeout=1.0, share=lambda told, _: told)


# ---- checkpoints and models ----


def _read_resealed(content: bytes, directory: Path) -> None:
    """A manifest whose own digest is right: whoever can write a checkpoint can write that, too."""
    _read_manifest(corpus.sealed(content), directory)


def _read_manifest(content: bytes, directory: Path) -> None:
    (directory / MANIFEST).write_bytes(content)
    (directory / "model.bin").write_bytes(b"abc")
    (directory / "optimizer").mkdir()
    (directory / "optimizer" / "rank-0.bin").write_bytes(b"abc")
    manifest = read_manifest(directory)
    for digests in (False, True):
        check_files(directory, manifest.files, digests=digests)
    decode_info(manifest.info)


def _check_model(content: bytes, _directory: Path) -> None:
    from trainbox.xgboost.model_check import check_model  # noqa: PLC0415 - imports XGBoost

    check_model(content, source="the model")


def _convert_model(content: bytes, _directory: Path) -> None:
    """An old model as it is served: converted, checked, loaded, asked."""
    import numpy as np  # noqa: PLC0415 - likewise
    import xgboost as xgb  # noqa: PLC0415 - likewise

    from trainbox.xgboost.model_check import check_model  # noqa: PLC0415 - likewise
    from trainbox.xgboost.old_models import convert  # noqa: PLC0415 - likewise

    model = convert(content, source="the model")
    known = check_model(model, source="the model")
    if known.features < _LARGEST_FRAME:
        rows = xgb.DMatrix(np.zeros((1, known.features), np.float32), nthread=1)
        with contextlib.suppress(xgb.core.XGBoostError):  # an objective that there is not
            xgb.Booster({"nthread": 1}, model_file=bytearray(model)).predict(rows)


def _find_code(content: bytes, _directory: Path) -> None:
    from trainbox.torch.archives import find_code  # noqa: PLC0415 - imports torch

    find_code(content)


def _unpack_forest(content: bytes, _directory: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415 - likewise

    from trainbox.sklearn.forests.packing import unpack  # noqa: PLC0415

    unpack(content, RandomForestClassifier, features=4, source="the forest")


def _unpack_schema(content: bytes, directory: Path) -> None:
    """A forest whose description says something else."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(corpus.forests()[0])) as honest, zipfile.ZipFile(sink, "w") as forged:
        for name in honest.namelist():
            forged.writestr(name, content if name == "schema.json" else honest.read(name))
    _unpack_forest(sink.getvalue(), directory)


def _parse_state(content: bytes, _directory: Path) -> None:
    from trainbox.torch.checkpoints.codec import decode, empty  # noqa: PLC0415 - imports torch
    from trainbox.torch.checkpoints.state_manifest import decode_manifest  # noqa: PLC0415

    for part in decode_manifest(content).parts.values():
        decode(part.tree, [empty(entry) for entry in part.table if entry.size < _LARGEST_FRAME])


def _unpack_state(content: bytes, _directory: Path) -> None:
    from trainbox.torch.checkpoints.codec import unpack  # noqa: PLC0415 - imports torch

    unpack(content)


def _read_index(content: bytes, directory: Path) -> None:
    from trainbox.torch.checkpoints.sharded.dcp_index import METADATA, read_index  # noqa: PLC0415 - imports torch

    (directory / METADATA).write_bytes(content)
    read_index(directory / METADATA, {"__0_0.distcp": 10**6})


# ---- data ----


def _read(name: str) -> Use:
    def read(content: bytes, directory: Path) -> None:
        (directory / name).write_bytes(content)
        for columns in (
            ColumnSpec(),
            ColumnSpec(labels=1, weight=True),
            ColumnSpec(group="0"),
            ColumnSpec(texts=True, categorical=("0",)),
        ):
            with contextlib.suppress(DataError):
                read_table(directory, columns=columns)
        with contextlib.suppress(DataError):
            estimate_bytes(directory)
        list(read_blocks(directory, rows=7))

    return read


def _parse_bodies(content: bytes, _directory: Path) -> None:
    """A request may say any content type."""
    for format_ in get_args(Format):
        with contextlib.suppress(DataError):
            parse_body(content, format_)


def _read_card(place: str) -> Use:
    def read(content: bytes, directory: Path) -> None:
        (directory / place).parent.mkdir(exist_ok=True)
        (directory / place).write_bytes(content)
        card = read_card(directory)
        card.features.coded()

    return read


def _read_message(content: bytes, directory: Path) -> None:
    with contextlib.suppress(DataError):  # where the one before is another
        _read("a.rec")(corpus.RECORDS[0] + corpus.message(content), directory)
    _read("a.rec")(corpus.message(content), directory)


# ---- the request ----


def _read_config(name: str) -> Use:
    def read(content: bytes, directory: Path) -> None:
        config = directory / "input/config"
        config.mkdir(parents=True)
        for other, (honest, *_) in _CONFIGS.items():
            (config / other).write_bytes(content if other == name else honest)
        _use_job(directory, {})

    return read


def _use_job(root: Path, env: dict[str, str]) -> None:
    job = read_job(root, env)
    variables(job, entry_point="train.py", env=env, machine=Machine())
    json.dumps(job.argv)


def _read_variables(content: bytes, directory: Path) -> None:
    pairs = (line.partition("=") for line in content.decode(errors="surrogateescape").splitlines())
    env = {name: value for name, is_pair, value in pairs if name and is_pair}
    find_members_beyond(env, 1)
    readers: tuple[Callable[[dict[str, str]], object], ...] = (
        *(read_port, read_ranks, lambda env: read_ranks(env, hosts=2, host_rank=1)),
        *(read_peer_key, read_checkpoint_keys, read_resolved),
    )
    for read in readers:
        with contextlib.suppress(ContractError):
            read(env)
    _use_job(directory, env)


def _find_references(content: bytes, _directory: Path) -> None:
    text = content.decode(errors="surrogateescape")
    found = list(find_references(text, "hyperparameter x"))
    fill_in_raw(text, {reference.text: "a value" for reference in found})


def _extract(content: bytes, directory: Path) -> None:
    (directory / "source.tar.gz").write_bytes(content)
    (directory / "code").mkdir()
    extract(directory / "source.tar.gz", directory / "code", shown="source.tar.gz")


# ---- what a script says ----


def _read_metrics(content: bytes, _directory: Path) -> None:
    text = content.decode(errors="replace")
    parse_line(text)
    declared = [Metric("loss", "minimize"), Metric("validation:auc", "maximize")]
    check(declared, text.splitlines())


def _declare(content: bytes, _directory: Path) -> None:
    """A name of the script's; its regex must find it."""
    metric = Metric(content.decode(errors="surrogateescape"), "minimize")
    check([metric], [f"[metrics] step=1 {metric.name}=1"])
    definitions([metric])


_CONFIGS = {
    "hyperparameters.json": corpus.HYPERPARAMETERS,
    "resourceconfig.json": corpus.RESOURCES,
    "inputdataconfig.json": corpus.CHANNELS,
    "checkpointconfig.json": corpus.CHECKPOINT_CONFIGS,
}

TARGETS: dict[str, Target] = {
    "greeting": Target(corpus.greetings, _greet, (OSError,), (b"tbxp", b"\0\1", b"\xa5hello")),
    "greeting, framed anew": Target(
        corpus.messages_of_greeting, lambda content, path: _greet(corpus.greeting(content), path), (OSError,)
    ),
    "heartbeats": Target(corpus.heartbeats, _hear, (OSError,), _FRAME),
    "frame": Target(corpus.frames, _take_frame, (OSError, PeerError), _FRAME),
    "round of the health checks": Target(corpus.frames, _decide, (), _FRAME),
    "gathered values": Target(corpus.gathered, _gather, (PeerError,)),
    "manifest": Target(corpus.sealed_manifests, _read_manifest, (CheckpointError,), _JSON),
    "manifest, sealed anew": Target(corpus.manifests, _read_resealed, (CheckpointError,), (*_JSON, b'"../x"', b'"/x"')),
    "XGBoost model": Target(
        corpus.models, _check_model, (DataError,), (b"[$l#L", b"[#L", b"{L", b"}", b"L\0\0\0\0\0\0\0\1")
    ),
    "XGBoost model, JSON": Target(corpus.text_models, _check_model, (DataError,), _JSON),
    "XGBoost model, binary or pickled": Target(
        corpus.old_models, _convert_model, (DataError,), (b"cos\nsystem\n", b"R", b".", b"\xff\xff\xff\x7f")
    ),
    "exported program": Target(corpus.exported, _find_code, ()),
    "model card": Target(corpus.of(*corpus.CARDS), _read_card("trainbox/model.json"), (DataError,), _JSON),
    "model card, earlier": Target(corpus.of(*corpus.DESCRIPTIONS), _read_card("model.json"), (DataError,), _JSON),
    "forest": Target(corpus.forests, _unpack_forest, (DataError,)),
    "forest, description": Target(corpus.schemas, _unpack_schema, (DataError,), (*_JSON, b"os.system", b"__loader__")),
    "PyTorch state": Target(corpus.states, _parse_state, (CheckpointError,), _JSON),
    "PyTorch state of a rank": Target(corpus.packed_states, _unpack_state, (CheckpointError,), _JSON),
    "index of a sharded state": Target(corpus.indexes, _read_index, (CheckpointError,), (b"cos\nsystem\n", b"R", b".")),
    "CSV": Target(
        corpus.of(*corpus.CSVS), _read("a.csv"), (DataError,), (b",", b"\n", b'"', b"nan", b"1e5", b"\r", b"\0")
    ),
    "libsvm": Target(corpus.of(*corpus.SVMS), _read("a.svm"), (DataError,), (b":", b" ", b"\n", b"qid:", b"1:", b"#")),
    "file of no known name": Target(
        corpus.of(*corpus.CSVS, *corpus.SVMS[:2], *corpus.RECORDS), _read("part-0"), (DataError,)
    ),
    "request body": Target(
        corpus.of(*corpus.CSVS, *corpus.SVMS, *corpus.RECORDS), _parse_bodies, (DataError,), (b":", b"qid:", b"\n")
    ),
    **{f"request, {name}": Target(honest, requests.answer_as(name), ()) for name, honest in requests.BODIES.items()},
    "compressed file": Target(corpus.compressed, _read("a.csv.gz"), (DataError,)),
    "Parquet": Target(corpus.parquets, _read("a.parquet"), (DataError,)),
    "recordio": Target(corpus.of(*corpus.RECORDS), _read("a.rec"), (DataError,)),
    "protobuf": Target(corpus.of(*corpus.MESSAGES), _read_message, (DataError,)),
    "content type": Target(
        corpus.of(*corpus.CONTENT_TYPES),
        lambda content, _: read_content_type(content.decode(errors="surrogateescape")),
        (DataError,),
        (b";", b"=", b"/", b"charset", b"label_size", b'"'),
    ),
    **{
        name: Target(corpus.of(*contents), _read_config(name), (ContractError,), _JSON)
        for name, contents in _CONFIGS.items()
    },
    "variables": Target(
        corpus.of(*corpus.VARIABLES), _read_variables, (ContractError,), (b"RANK=", b"\n", b"=", b"-1")
    ),
    "reference to a secret": Target(
        corpus.of(*corpus.REFERENCES), _find_references, (ContractError,), (b"{{resolve:", b"}}", b":", b"ssm", b"arn")
    ),
    "source archive": Target(corpus.archives, _extract, (ProgramError,)),
    "metric lines": Target(
        corpus.of(*corpus.METRIC_LINES), _read_metrics, (), (b"[metrics] ", b"step=", b"=", b" ", b"\n")
    ),
    "metric names": Target(
        corpus.of(b"loss", b"validation:auc", b"a-b_c/d@1"), _declare, (MetricError,), (b":", b"(", b"\\")
    ),
}


def use(target: Target, content: bytes, directory: Path, *, is_honest: bool = False) -> None:
    """Feed a target, in a directory that is empty before and after.

    Raises:
        Exception: What the target raises that it may not; of honest bytes anything.
    """
    directory.mkdir()
    try:
        target.use(content, directory)
    except target.errors:
        if is_honest:
            raise
    finally:
        shutil.rmtree(directory)
