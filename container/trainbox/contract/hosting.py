"""What SageMaker says to `serve`, read once into a frozen `Hosting`; and what a model must be able to do: `Predictor`.

Sources: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html (real time),
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html (batch transform), and for the variables
of the serving toolkits https://github.com/aws/sagemaker-inference-toolkit and
https://github.com/aws/sagemaker-xgboost-container.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args

import msgspec

from trainbox.contract.environment import GPU_VARIABLE
from trainbox.contract.layout import Layout
from trainbox.contract.model_card import ModelCard
from trainbox.contract.setting_values import Installs, one_of, read_switch
from trainbox.errors import ContractError

T = TypeVar("T")

DEFAULT_PORT = 8080
#: The file with the user's hooks.
DEFAULT_PROGRAM = "inference.py"
DEFAULT_ADDRESS = "0.0.0.0"  # noqa: S104 - SageMaker connects from outside of the container
#: SageMaker's own limit on a request of a real-time endpoint (hosting FAQ), and that of batch transform.
DEFAULT_BODY_MB = 25
MOST_BODY_MB = 1024
DEFAULT_TIMEOUT_SECONDS = 60.0
DEFAULT_BATCH_TIMEOUT_SECONDS = 600.0
#: Within 8 minutes `/ping` must answer 200, or the launch has failed.
DEFAULT_STARTUP_SECONDS = 480.0
LAST_PORT = 65535
MOST_WORKERS = 1024

BatchStrategy = Literal["MULTI_RECORD", "SINGLE_RECORD"]
#: Whether a model that is a pickle, or that brings code, may be served: loading either runs code of its author.
ServeCode = Literal["allow", "never"]
_INSTALLS: Callable[[str], Installs] = one_of(get_args(Installs))
_BATCH_STRATEGY: Callable[[str], BatchStrategy] = one_of(("MULTI_RECORD", "SINGLE_RECORD"))

#: Every variable that `serve` reads, and what it says; docs/serving.md is generated from here.
HOSTING_VARIABLES: Mapping[str, str] = {
    "SAGEMAKER_BIND_TO_PORT": f"the port, {DEFAULT_PORT} by default",
    "SAGEMAKER_SAFE_PORT_RANGE": "`FIRST-LAST`: further ports that the container may bind; none is bound",
    "TRAINBOX_BIND_ADDRESS": "the address, `0.0.0.0` by default: every interface",
    "SAGEMAKER_MODEL_SERVER_WORKERS": "worker processes; by default one for each processor of the container",
    "SAGEMAKER_MODEL_SERVER_TIMEOUT": f"seconds after which a worker that does not answer is replaced,"
    f" {DEFAULT_TIMEOUT_SECONDS:g} by default and {DEFAULT_BATCH_TIMEOUT_SECONDS:g} in a batch transform job",
    "SAGEMAKER_STARTUP_TIMEOUT": f"seconds that loading the model may take, {DEFAULT_STARTUP_SECONDS:g} by default",
    "SAGEMAKER_BATCH": "`true` in a batch transform job",
    "SAGEMAKER_BATCH_STRATEGY": "`MULTI_RECORD` or `SINGLE_RECORD`, of a batch transform job",
    "SAGEMAKER_MAX_PAYLOAD_IN_MB": "the largest request of a batch transform job; 0 is a body of any length",
    "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "requests at the same time, of a batch transform job",
    "SAGEMAKER_MULTI_MODEL": "`true` for an endpoint of many models, which come and go by `/models`",
    "SAGEMAKER_PROGRAM": "the file with the user's hooks (`model_fn`, `input_fn`, …), `inference.py` by default",
    "LOCAL_PYTHON": "set by the local mode of SDK v3, which names `inference.py` whether there is one or not: without"
    " the file the model is served without hooks",
    "SAGEMAKER_SUBMIT_DIRECTORY": "the directory of that file: a path, `file://…` or `s3://…tar.gz`",
    "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "the content type of an answer where the request names none",
    "SAGEMAKER_INFERENCE_OUTPUT": "what an answer holds, separated by commas: `predicted_label`, `probability`, …",
    "SAGEMAKER_INFERENCE_ENSEMBLE": "`false`: of the models of several folds only the first answers",
    "SAGEMAKER_CONTAINER_LOG_LEVEL": "as Python's: 10 debug, 20 info (default), 30 warnings and errors alone",
    "MAX_CONTENT_LENGTH": "the largest body in bytes, as the built-in XGBoost reads it",
    "TRAINBOX_MAX_BODY_MB": f"the largest body in MB, {DEFAULT_BODY_MB} by default, at most {MOST_BODY_MB}",
    "TRAINBOX_SERVE_CODE": "`allow` (default) or `never`: refuse a model that is a pickle or brings code",
    "TRAINBOX_REQUIREMENTS": "what pip may install of `code/requirements.txt`: `any` (default), `wheels`, `hashes` or"
    " `off`, as in training",
    "TRAINBOX_SERVE_DETAIL": "`false`: an error repeats neither a cell nor the text of an exception, which may be"
    " personal",
    "TRAINBOX_SERVE_BATCH": "`false`: requests that arrive together are predicted one by one",
    "TRAINBOX_BATCH_NEWLINE": "`false`: the last line of an answer of a batch transform job has no newline",
}


_TIMEOUT, _WORKERS, _BODY = "SAGEMAKER_MODEL_SERVER_TIMEOUT", "SAGEMAKER_MODEL_SERVER_WORKERS", "TRAINBOX_MAX_BODY_MB"
#: Variables of other model servers, and what to set instead.
_OF_OTHERS: Mapping[str, str] = {
    "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": f"set {_TIMEOUT}, which counts seconds",
    "SAGEMAKER_MODEL_SERVER_VMARGS": "there is no Java",
    "SAGEMAKER_USE_NGINX": "there is no nginx",
    **dict.fromkeys(("SAGEMAKER_TS_MIN_WORKERS", "SAGEMAKER_TS_MAX_WORKERS"), f"set {_WORKERS}"),
    **dict.fromkeys(
        ("SAGEMAKER_TS_BATCH_SIZE", "SAGEMAKER_TS_MAX_BATCH_DELAY"),
        "requests that meet are predicted together, without a delay",
    ),
    **dict.fromkeys(
        ("SAGEMAKER_TS_RESPONSE_TIMEOUT", "TS_DEFAULT_RESPONSE_TIMEOUT", "MMS_DEFAULT_RESPONSE_TIMEOUT"),
        f"set {_TIMEOUT}",
    ),
    **dict.fromkeys(("TS_MAX_REQUEST_SIZE", "MMS_MAX_REQUEST_SIZE"), f"set {_BODY}"),
}


class Batch(msgspec.Struct, frozen=True):
    """What a batch transform job says of its requests; None where the request did not set it."""

    strategy: BatchStrategy | None = None
    #: 0 is a chunked body of any length.
    max_payload_mb: int | None = None
    max_concurrent: int | None = None


class Hosting(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that SageMaker passes to a hosting container, parsed once."""

    layout: Layout
    port: int = DEFAULT_PORT
    #: Of the interface; `trainbox serve` binds loopback alone.
    address: str = DEFAULT_ADDRESS
    #: First and last of the ports that may be bound beside it.
    safe_ports: tuple[int, int] | None = None
    #: None: one for each processor.
    workers: int | None = None
    #: Of one request.
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    #: Of loading the model and answering the rows of its card.
    startup_seconds: float = DEFAULT_STARTUP_SECONDS
    #: None for an endpoint.
    batch: Batch | None = None
    is_multi_model: bool = False
    #: Of a model of such an endpoint: its directory, and what it is called.
    model_path: Path | None = None
    model_name: str = "model"
    program: str = ""
    #: Whether the program was named by the local mode of SDK v3, which does so where there is none, too.
    may_lack_program: bool = False
    submit_directory: str = ""
    default_accept: str = ""
    #: What an answer holds, in this order; empty for the prediction alone.
    outputs: tuple[str, ...] = ()
    use_ensemble: bool = True
    #: 0 is any length.
    max_body_bytes: int = DEFAULT_BODY_MB * 2**20
    code: ServeCode = "allow"
    #: What pip may install for the user's module.
    installs: Installs = "any"
    shows_values: bool = True
    joins_requests: bool = True
    ends_with_newline: bool = True
    log_level: int = 20
    #: Of CUDA_VISIBLE_DEVICES; empty where it is not set, one empty name for none.
    visible_gpus: tuple[str, ...] = ()

    @property
    def model_dir(self) -> Path:
        """What `model.tar.gz` was unpacked to; nothing may be written there."""
        return self.model_path or self.layout.model_dir


def read_hosting(env: Mapping[str, str]) -> Hosting:
    """Read what SageMaker says to `serve`.

    Args:
        env: The environment of the program.

    Raises:
        ContractError: A variable is malformed; says which, and what it may be.
    """
    batch = _read_batch(env)
    timeout = DEFAULT_BATCH_TIMEOUT_SECONDS if batch else DEFAULT_TIMEOUT_SECONDS
    return Hosting(
        layout=Layout.from_environment(env),
        port=_read(env, "SAGEMAKER_BIND_TO_PORT", _between(1, LAST_PORT), DEFAULT_PORT),
        address=env.get("TRAINBOX_BIND_ADDRESS") or DEFAULT_ADDRESS,
        safe_ports=_read(env, "SAGEMAKER_SAFE_PORT_RANGE", _read_ports, None),
        workers=_read(env, "SAGEMAKER_MODEL_SERVER_WORKERS", _between(1, MOST_WORKERS), None),
        timeout_seconds=_read(env, "SAGEMAKER_MODEL_SERVER_TIMEOUT", _read_timeout, timeout),
        startup_seconds=_read(env, "SAGEMAKER_STARTUP_TIMEOUT", _read_timeout, DEFAULT_STARTUP_SECONDS),
        batch=batch,
        is_multi_model=_read(env, "SAGEMAKER_MULTI_MODEL", read_switch, default=False),
        program=env.get("SAGEMAKER_PROGRAM", ""),
        may_lack_program="LOCAL_PYTHON" in env and env.get("SAGEMAKER_PROGRAM") == DEFAULT_PROGRAM,
        submit_directory=env.get("SAGEMAKER_SUBMIT_DIRECTORY", ""),
        default_accept=env.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", ""),
        outputs=_read(env, "SAGEMAKER_INFERENCE_OUTPUT", _read_names, ()),
        use_ensemble=_read(env, "SAGEMAKER_INFERENCE_ENSEMBLE", read_switch, default=True),
        max_body_bytes=_read_largest_body(env, batch),
        code=_read(env, "TRAINBOX_SERVE_CODE", one_of(("allow", "never")), "allow"),
        installs=_read(env, "TRAINBOX_REQUIREMENTS", _INSTALLS, "any"),
        shows_values=_read(env, "TRAINBOX_SERVE_DETAIL", read_switch, default=True),
        joins_requests=_read(env, "TRAINBOX_SERVE_BATCH", read_switch, default=True),
        ends_with_newline=_read(env, "TRAINBOX_BATCH_NEWLINE", read_switch, default=True),
        visible_gpus=tuple(env[GPU_VARIABLE].split(",")) if GPU_VARIABLE in env else (),
        log_level=_read(env, "SAGEMAKER_CONTAINER_LOG_LEVEL", _between(0, 100), 20),
    )


def describe_ignored(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return a line for each variable of another model server, which has no effect here."""
    return tuple(f"{name} has no effect: {instead}" for name, instead in _OF_OTHERS.items() if env.get(name))


def _read_batch(env: Mapping[str, str]) -> Batch | None:
    if not _read(env, "SAGEMAKER_BATCH", read_switch, default=False):
        return None
    return Batch(
        strategy=_read(env, "SAGEMAKER_BATCH_STRATEGY", _read_strategy, None),
        max_payload_mb=_read(env, "SAGEMAKER_MAX_PAYLOAD_IN_MB", _between(0, 100), None),
        max_concurrent=_read(env, "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS", _between(1, MOST_WORKERS), None),
    )


def _read_largest_body(env: Mapping[str, str], batch: Batch | None) -> int:
    """Ours wins over the built-in's, and what a batch transform job says over the default."""
    if "TRAINBOX_MAX_BODY_MB" in env:
        return _read(env, "TRAINBOX_MAX_BODY_MB", _between(1, MOST_BODY_MB), DEFAULT_BODY_MB) * 2**20
    if batch is not None and batch.max_payload_mb is not None:
        return batch.max_payload_mb * 2**20
    return _read(env, "MAX_CONTENT_LENGTH", _between(1, MOST_BODY_MB * 2**20), DEFAULT_BODY_MB * 2**20)


def _read(env: Mapping[str, str], name: str, parse: Callable[[str], T], default: T) -> T:
    """Read a variable; one that is empty counts as unset, as SDKs pass on what they do not set."""
    text = env.get(name, "").strip()
    if not text:
        return default
    try:
        return parse(text)
    except ValueError as error:
        raise ContractError(f"{name}={text!r} cannot be used", hint=f"it is {HOSTING_VARIABLES[name]}") from error


def _between(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise ValueError(text)
        return int(text)

    return read


def _read_ports(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    ports = _between(1, LAST_PORT)(first), _between(1, LAST_PORT)(last)
    if ports[0] > ports[1]:
        raise ValueError(text)
    return ports


def _read_timeout(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError(text)
    return seconds


def _read_strategy(text: str) -> BatchStrategy:
    """As the API spells it (MultiRecord), or the variable (MULTI_RECORD)."""
    return _BATCH_STRATEGY(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text).upper())


def _read_names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ValueError(text)
    return names


# ---- what a model must be able to do ----


#: Outputs of a model beyond its numbers, by name; each is computed from rows, or raises DataError.
Extras: TypeAlias = Mapping[str, Callable[[Any], Any]]
NO_EXTRAS: Extras = MappingProxyType({})


class Predictor(Protocol):
    """A loaded model. Each algorithm's room has one in `predictor.py`; serving knows no other way to a model.

    Arrays are NumPy's, or SciPy's csr_matrix where sparse; the contract itself imports neither.
    """

    @property
    def card(self) -> ModelCard:
        """What the model expects and gives; for a foreign model what its files say."""

    @property
    def is_rowwise(self) -> bool:
        """Whether a row gives the same bits alone and among others: then requests that arrive together are joined."""

    def predict(self, rows: Any) -> Any:  # noqa: ANN401 - an array
        """Return what the library's own `predict` gives, to the bit.

        Args:
            rows: (n, m) float32, C-ordered, a missing value is NaN; or a csr_matrix, in which what is not stored is
                what the card's `absent` says. Of images (n, channels, height, width).

        Returns:
            (n,) or (n, c), floating point: a number, a class or probability, or one for each output.
        """

    @property
    def extras(self) -> Extras:
        """What it can say of rows beyond its numbers.

        `contributions` is how much each feature adds to the output of each row (SHAP), the bias last: (n, m + 1), or
        (n, c, m + 1) for c classes or targets. `leaf` is the leaf that each row reaches in each tree: (n, trees) whole
        numbers.
        """

    def set_threads(self, count: int) -> None:
        """Use so many processors from now on; called in a worker, after the fork."""
