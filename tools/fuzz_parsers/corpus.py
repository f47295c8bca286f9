"""Honest bytes of every format, made on the spot: small ones, so that a change hits something."""

import gzip
import hashlib
import io
import json
import struct
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tests.support.writers import dense, field, frame, record, sparse, tensor, varint
from trainbox.contract.model_card import Features, ModelCard, SampleRow, encode_card, features_of

_ROWS = np.arange(60, dtype=np.float32).reshape(-1, 3).tolist()
CSV = "\n".join(",".join(map(str, row)) for row in _ROWS).encode() + b"\n"
CSVS = (CSV, b'"y",x,"z z"\n' + CSV, b"1;2;3\n4;;NA\n", b"1\t2\r\n3\tnan\r\n", b"1|2|3\n4|5|6\n", b'"1","2"\n"3","4"\n')
SVM = b"".join(b"1:1 qid:%d 1:%d 7:0.5\n" % (row // 5, row) for row in range(20))
SVMS = (SVM, b"0 1:1e-3 # c\n1 2:2\n", b"-1\n+1 3:0\n")
RECORDS = (
    dense(_ROWS),
    dense(_ROWS, kind="float64"),
    dense([[1, 2, 3]] * 4, kind="int32"),
    sparse([(1, {0: 1.0, 5: 2.0})] * 9, width=9),
    sparse([(1, {0: 1.0, 5: 2.0}), (0, {1: -1.0})], width=None),
)
MESSAGES = (
    record(tensor([1.0, 2.0]), tensor([1])),
    record(tensor([1.0], keys=[3], shape=[9]), tensor([0]), rest=field(3, b"id")),
    record(tensor([1.0, 2.0], kind="float64"), tensor([1], kind="int32")),
    varint(5 << 3 | 5) + struct.pack("<f", 1.0) + record(tensor([1.0]), tensor([1])),
)
HYPERPARAMETERS = (
    b'{"epochs": "3", "lr": "1e-3", "trainbox_launcher": "torchrun", "sagemaker_program": "train.py", "api_key": "x"}',
    b'{"a": "[1, 2]", "b": "{\\"c\\": null}", "flag": "True", "trainbox_drill": "kill 1@20, freeze 0@40"}',
    b'{"sagemaker_mpi_enabled": "true", "u": "https://u:p@h/", "trainbox_arguments": "hydra"}',
)
CARDS = (
    encode_card(
        ModelCard(
            framework="xgboost",
            algorithm="xgboost",
            objective="multi:softprob",
            features=features_of(("age", "colour"), {"colour": "text"}),
            classes=("no", 1),
            categories={"colour": ("blue", "red")},
            metrics={"validation:mlogloss": 0.25},
            hyperparameters={"max_depth": 3, "missing": ["", "NA"]},
            files={"xgboost-model": "00" * 32},
            samples=(SampleRow({"age": 31.5, "colour": "red"}, (0.25, 0.75)), SampleRow({}, 3.0)),
        )
    ),
    encode_card(
        ModelCard(
            framework="pytorch", algorithm="p", objective="regression", features=Features(9, types={"f8": "code"})
        )
    ),
)
DESCRIPTIONS = (
    (
        b'{"algorithm":"xgboost","complete":true,"rounds":3,"best_iteration":2,"metrics":{"m":{"mean":1.5,"std":null}},'
        b'"features":["f0"],"hyperparameters":{"objective":"multi:softmax","num_class":3,"missing":[""]},"versions":{}}'
    ),
    (
        b'{"algorithm":"Forest","complete":false,"trees":8,"metrics":{"m":0.5},"skops":{"file":"s","trusted":["t"]},'
        b'"features":["a","b"],"classes":[0,1],"hyperparameters":{"task":"classification"},"versions":{"skops":"1"}}'
    ),
    (
        b'{"algorithm":"perceptron","complete":true,"epoch":3,"metrics":{},"inputs":[4],"features":[],"classes":["0"],'
        b'"parameters":90,"statistics":{"0.mean":[1.5]},"hyperparameters":{},"versions":{"torch":"2"}}'
    ),
)
RESOURCES = (
    b'{"current_host": "algo-1", "hosts": ["algo-1", "algo-2"], "network_interface_name": "eth0"}',
    (
        b'{"current_host": "a", "hosts": ["a"], "current_instance_type": "ml.m5.large", "current_group_name": "g",'
        b' "instance_groups": [{"instance_group_name": "g", "instance_type": "t", "hosts": ["a"]}], "topology": []}'
    ),
)
CHANNELS = (
    (
        b'{"train": {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None",'
        b' "ContentType": "text/csv; label_size=1"}, "x.y-z_1": {}}'
    ),
    b'{"train": {"TrainingInputMode": "Pipe", "RecordWrapperType": "RecordIO"}}',
)
CHECKPOINT_CONFIGS = (b'{"LocalPath": "/opt/ml/checkpoints", "S3Uri": "s3://b/k"}', b'{"LocalPath": "/x"}')
VARIABLES = (
    b"RANK=3\nWORLD_SIZE=4\nLOCAL_RANK=1\nLOCAL_WORLD_SIZE=2\nMASTER_PORT=29500",
    b"OMPI_COMM_WORLD_SIZE=2\nPMI_SIZE=3\nSLURM_STEP_NUM_TASKS=4\nTRAINBOX_LAUNCHER=plain\nSM_HP_MP_PARAMETERS={}",
    b"TRAINBOX_PEER_KEY=" + b"0f" * 32 + b"\nTRAINBOX_CHECKPOINT_KEY=" + b"0f" * 32 + b"," + b"AA" * 21 + b"A=\n",
    b"TRAINBOX_PREFLIGHT=full\nTRAINBOX_HANG_SECONDS=20\nTRAINBOX_DRILL=kill 1@20\nTRAINING_JOB_NAME=j\nAWS_REGION=r",
)
REFERENCES = (
    b"{{resolve:secretsmanager:name:SecretString:key}} and {{resolve:ssm:/a/b:3}}",
    b"postgres://u:{{resolve:secretsmanager:arn:aws:secretsmanager:eu-central-1:123456789012:secret:n-AbCdEf}}@h/d",
    b'{"a": ["{{resolve:ssm-secure:name}}"]}',
)
CONTENT_TYPES = (
    b"text/csv",
    b"text/csv; label_size=1; charset=utf-8",
    b"application/x-recordio-protobuf",
    b"text/libsvm",
)
METRIC_LINES = (
    b"[metrics] step=9 train:auc=0.8659712 validation:auc=0.8408114",
    b"2026-01-01 12:00 | [metrics] final loss=-1.5e-07 acc=nan",
    b"[metrics] step=1 a=1",
)
_NAMES = (("algo-1", "algo-2"), ("", "é" * 100))


@cache
def parquets() -> tuple[bytes, ...]:
    """Tables as Parquet."""
    import pyarrow as pa  # noqa: PLC0415 - not for the other formats
    from pyarrow import parquet  # noqa: PLC0415

    made = []
    rows = np.array(_ROWS)
    for options in (
        {},
        {"compression": "zstd", "data_page_version": "2.0"},
        {"use_dictionary": False, "version": "1.0"},
    ):
        sink = io.BytesIO()
        parquet.write_table(pa.table({str(column): rows[:, column] for column in range(3)}), sink, **options)
        made.append(sink.getvalue())
    return tuple(made)


def compressed() -> tuple[bytes, ...]:
    """CSV, compressed."""
    return gzip.compress(CSV, mtime=0), gzip.compress(CSV, compresslevel=0, mtime=0)


def greetings() -> tuple[bytes, ...]:
    """The messages of a handshake."""
    return tuple(map(greeting, messages_of_greeting()))


def messages_of_greeting() -> tuple[bytes, ...]:
    """The same without what stands in front of each."""
    from trainbox.comm.handshake import Accepted, Challenge, Hello, Proof, Rejection  # noqa: PLC0415 - as below

    messages = (Hello("job", "algo-2", "heartbeat", bytes(32)), Challenge(bytes(32), bytes(32)), Proof(bytes(32)))
    return tuple(map(msgspec.msgpack.encode, (*messages, Accepted(), Rejection("job"))))


def greeting(message: bytes) -> bytes:
    """A message of a handshake with magic number, version and length in front."""
    return struct.pack("!4sHH", b"tbxp", 2, len(message) % 2**16) + message


def frames() -> tuple[bytes, ...]:
    """Messages of a member after the handshake."""
    from trainbox.comm.framing import encode_header  # noqa: PLC0415 - as below

    contents = (b"hello", b"", msgspec.msgpack.encode("algo-2"))
    return tuple(encode_header(1, "gather", len(content)) + content for content in contents)


def heartbeats() -> tuple[bytes, ...]:
    """Messages between the failure detectors of two members."""
    from trainbox.comm.framing import Heartbeat, Loss, encode_header  # noqa: PLC0415 - as below

    messages = (
        (Heartbeat(), Heartbeat(), Heartbeat(goodbye=True)),
        (Heartbeat(gave_up="why", exit_code=3, stopped=True), Heartbeat(lost=Loss("a", "w", "h", exit_code=1))),
    )
    contents = [[msgspec.msgpack.encode(message) for message in several] for several in messages]
    return tuple(b"".join(encode_header(0, "heartbeat", len(one)) + one for one in several) for several in contents)


def gathered() -> tuple[bytes, ...]:
    """What the leader tells all of what all have said."""
    return tuple(msgspec.msgpack.encode([msgspec.msgpack.encode(text) for text in pair]) for pair in _NAMES)


def manifests() -> tuple[bytes, ...]:
    """What a checkpoint consists of, without its seal."""
    record_of = {"size": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    files = {"model.bin": record_of, "optimizer/rank-0.bin": record_of}
    return tuple(
        json.dumps({"step": step, "info": info, "files": files}).encode()
        for step, info in ((20, {}), (0, {"a": [1, None, {"b": 1.5}]}))
    )


def sealed(manifest: bytes) -> bytes:
    """A manifest as it lies on the disk, with its digest."""
    digest = hashlib.sha256(manifest).hexdigest().encode()
    return b'{"format":1,"sha256":"' + digest + b'","manifest":' + manifest + b"}\n"


def sealed_manifests() -> tuple[bytes, ...]:
    """Likewise, those of `manifests`."""
    return tuple(map(sealed, manifests()))


@cache
def models() -> tuple[bytes, ...]:
    """Models as XGBoost writes them, in UBJSON."""
    return tuple(bytes(booster.save_raw("ubj")) for booster in _boosters())


@cache
def text_models() -> tuple[bytes, ...]:
    """The same in JSON."""
    return tuple(bytes(booster.save_raw("json")) for booster in _boosters())


@cache
def _boosters() -> list[Any]:
    from tests.support.boosters import train  # noqa: PLC0415 - imports XGBoost

    kinds = ("softprob", "dart", "linear", "a tree for two targets", "categories", "exact, pruned")
    return [train(kind)[0] for kind in kinds]


@cache
def forests() -> tuple[bytes, ...]:
    """A forest, packed."""
    from trainbox.sklearn.forests.packing import pack  # noqa: PLC0415 - imports scikit-learn

    return (pack(_forest()),)


@cache
def schemas() -> tuple[bytes, ...]:
    """What a packed forest says of its arrays."""
    import zipfile  # noqa: PLC0415

    with zipfile.ZipFile(io.BytesIO(forests()[0])) as archive:
        return (archive.read("schema.json"),)


def _forest() -> Any:  # noqa: ANN401 - scikit-learn has no types
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415 - likewise

    random = np.random.default_rng(1)
    features = random.normal(size=(60, 4))
    return RandomForestClassifier(n_estimators=2, max_depth=3, random_state=1).fit(features, features[:, 0] > 0)


@cache
def states() -> tuple[bytes, ...]:
    """`state.json` of a PyTorch checkpoint."""
    from trainbox.torch.checkpoints.codec import encode  # noqa: PLC0415 - imports torch
    from trainbox.torch.checkpoints.state_manifest import encode_manifest  # noqa: PLC0415

    parts = {"model": encode(_state(), "model"), "optimizer": encode({"lr": 0.1, "groups": [(1, 2)]}, "optimizer")}
    kinds = {"model": "Linear", "optimizer": "AdamW"}
    return (
        encode_manifest(kinds, parts, world_size=2, shard_bytes=4096, identity={"seed": 1}, per_rank=("generators",)),
    )


@cache
def indexes() -> tuple[bytes, ...]:
    """The index of a sharded checkpoint."""
    import torch  # noqa: PLC0415 - takes seconds
    from torch.distributed.checkpoint.state_dict_saver import save  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as directory:
        save({"weight": torch.zeros(2, 3), "step": 4, "name": "x"}, checkpoint_id=directory, no_dist=True)
        return ((Path(directory) / ".metadata").read_bytes(),)


@cache
def packed_states() -> tuple[bytes, ...]:
    """The state of one rank's generators."""
    from trainbox.torch.checkpoints.codec import pack  # noqa: PLC0415 - imports torch

    return (pack(_state(), "generators"), pack({"a": 1, "b": b"xyz", "c": (1.5, None)}, "generators"))


def _state() -> dict[str, object]:
    import torch  # noqa: PLC0415 - takes seconds

    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2, dtype=torch.int64), "n": np.float64(1.5)}


def archives() -> tuple[bytes, ...]:
    """Source archives: plain, and compressed."""
    made = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=kind) as tar:
            for name, content in (("train.py", b"print(1)\n"), ("d/x" * 40, b"x" * 700), ("é.txt", b"")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        made.append(sink.getvalue())
    return (*made, gzip.compress(made[0], mtime=0))


Corpus = Callable[[], Sequence[bytes]]


def of(*contents: bytes) -> Corpus:
    """A corpus of these bytes."""
    return lambda: contents


def message(content: bytes) -> bytes:
    """A frame of recordio around a message."""
    return frame(content)
