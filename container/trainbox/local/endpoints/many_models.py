"""An endpoint of many models on this machine: a folder of them, as the prefix of S3 that SageMaker is given."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from trainbox.contract.layout import DEFAULT_ROOT
from trainbox.contract.model_card import ModelCard, read_card
from trainbox.errors import DataError, RunError
from trainbox.files import remove_tree
from trainbox.local.endpoints.endpoint import Endpoint
from trainbox.local.endpoints.model_source import ModelSource, find_source, is_model, unpack
from trainbox.local.endpoints.refusal import read_refusal
from trainbox.local.endpoints.sample_request import curl_command, make_request, schema_line
from trainbox.local.endpoints.server_plan import ServerPlan
from trainbox.local.results.result import MODEL

#: Below `/opt/ml`, as SageMaker puts them there.
MODELS = "models"


class NamedModel(msgspec.Struct, frozen=True):
    """A model of a folder."""

    #: That of its file or folder, which a request names as `TargetModel`.
    name: str
    source: ModelSource
    #: Where it is put, relative to the tree.
    place: str


def find_models(folder: Path) -> tuple[NamedModel, ...]:
    """Return the models of a folder: archives, folders with a model, and results of `trainbox run`.

    Raises:
        RunError: There are none.
    """
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}", hint="--multi-model takes a folder of models")
    found = [path for path in sorted(folder.iterdir()) if is_model(path) and not path.name.startswith(".")]
    if not found:
        raise RunError(f"{folder} has no models", hint="put model.tar.gz files or folders with a model into it")
    return tuple(
        NamedModel(path.name, find_source(path), f"{MODELS}/{number}/{MODEL}") for number, path in enumerate(found)
    )


@contextlib.contextmanager
def all_unpacked(models: Sequence[NamedModel]) -> Iterator[Path]:
    """Give a tree as SageMaker's below `/opt/ml`, with all models; it is removed afterwards.

    Raises:
        RunError: There is no place for it.
        DataError: A model cannot be copied.
        ProgramError: An archive is damaged, or not safe to unpack.
    """
    try:
        root = Path(tempfile.mkdtemp(prefix="trainbox-endpoint-"))
    except OSError as error:
        raise RunError(f"there is no place for the models: {error.strerror}", hint="set TMPDIR") from error
    try:
        for model in models:
            there = root / model.place
            there.parent.mkdir(parents=True)
            try:
                if model.source.kind == "archive":
                    unpack(model.source.path, there)
                else:  # the server follows no link out of its tree
                    shutil.copytree(model.source.path, there, symlinks=True)
            except (OSError, shutil.Error) as error:
                raise DataError(f"{model.source.path} cannot be copied: {error}") from error
        yield root
    finally:
        with contextlib.suppress(OSError):
            remove_tree(root)


def load_all(plan: ServerPlan, models: Sequence[NamedModel]) -> tuple[str, ...]:
    """Load models into a server that is ready; what to tell a person, a line each.

    Args:
        plan: Of the server.
        models: All of them; one that the server refuses is named, and the others are loaded.

    Raises:
        RunError: It does not answer.
    """
    lines: list[str] = []
    root = DEFAULT_ROOT if plan.image else plan.root
    with contextlib.closing(Endpoint(plan.url)) as endpoint:
        for model in models:
            asked = {"model_name": model.name, "url": str(root / model.place)}
            answer = endpoint.post("/models", json.dumps(asked).encode(), content_type="application/json")
            if answer.is_good:
                lines.append(_describe(model, plan))
            else:
                refusal = read_refusal(answer)
                lines.append(f"{model.name}: not loaded ({answer.status}), {refusal.error}")
    return tuple(lines)


def _describe(model: NamedModel, plan: ServerPlan) -> str:
    card = _read_card(plan.root / model.place)
    if card is None:
        return f"{model.name}: a model without a card"
    request = make_request(card)
    path = f"/models/{quote(model.name, safe='')}/invoke"
    shown = f"\n  {curl_command(request, plan.url, path)}" if request is not None else ""
    return f"{model.name}: {schema_line(card)}{shown}"


def _read_card(directory: Path) -> ModelCard | None:
    try:
        return read_card(directory)
    except DataError:
        return None
