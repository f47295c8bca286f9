"""The channel `model`: the model of a former job, from which training starts.

It holds that job's `model.tar.gz`, or the files of its model as they were written (CompressionType None).
"""

import atexit
import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from trainbox import toolkit
from trainbox.contract.job import Channel
from trainbox.contract.model_card import CARD_FILE, ModelCard, features_of, read_card
from trainbox.contract.text import short
from trainbox.errors import DataError, ProgramError
from trainbox.supervisor.program.archive import extract
from trainbox.system.shm_dir import temporary_directory

#: As SageMaker's SDK calls it (`model_channel_name`).
MODEL_CHANNEL = "model"
_PREFIX = "trainbox-model-"
_ARCHIVES = (".tar.gz", ".tgz")
_HINT = "give the model.tar.gz of a former job as it is, or a directory with what is in it"


@functools.cache
def former_model() -> Path | None:
    """Return the directory of the former model, unpacked; None if the job has no channel `model`.

    >>> trainbox.former_model()  # where `--channel model=former/model.tar.gz` was given
    PosixPath('/tmp/trainbox-model-…')

    The archive is refused if it holds links, leads out of its directory, or is larger than `trainbox_source_bytes`
    once it is unpacked. The directory is removed when the process ends.

    Raises:
        DataError: The channel holds no model, or one that is damaged.
    """
    channel = toolkit.current_job().channels.get(MODEL_CHANNEL)
    if channel is None:
        return None
    files = _list(channel)
    archives = [path for path in files if path.name.endswith(_ARCHIVES)]
    if not archives:
        return channel.path if channel.path.is_dir() else channel.path.parent
    if len(files) > 1:
        names = ", ".join(path.name for path in files[:3])
        raise DataError(f"channel {MODEL_CHANNEL}: which is the model: {names}?", hint=_HINT)
    return _unpack(archives[0])


def find_file(directory: Path, name: str) -> Path:
    """A file of the former model.

    Raises:
        DataError: It is not there; what is there is named.
    """
    path = directory / name
    if path.is_file():
        return path
    there = sorted(each.name for each in directory.iterdir())
    listed = ", ".join(short(each) for each in there[:5]) or "nothing"
    raise DataError(
        f"channel {MODEL_CHANNEL}: there is no {name}; it holds {listed}",
        hint="training starts from a model of the same script",
    )


def check_columns(
    directory: Path,
    columns: Sequence[str],
    texts: Mapping[str, Sequence[str]] | None = None,
    classes: Sequence[str] = (),
) -> None:
    """Refuse a former model of other columns, as far as its card tells; a foreign model has no card.

    Args:
        directory: That of the model.
        columns: Those of the channel `train`.
        texts: By column, the texts that numbers stand for, in the order of the numbers.
        classes: Of labels that are texts, likewise.

    Raises:
        DataError: The columns or their texts differ, or the card is damaged.
    """
    card = _read_card(directory)
    known = _texts_of(card)
    if card is not None:
        check_names(card.features.names, columns)
        _compare_texts("the label", known.classes, _without_numbers(classes))
    given = {name: tuple(each) for name, each in (texts or {}).items()}
    for name in sorted({*known.columns, *given}):
        _compare_texts(f"column {name!r}", known.columns.get(name, ()), given.get(name, ()))


class Texts(msgspec.Struct, frozen=True):
    """The texts that a former model was given numbers for, in the order of the numbers."""

    columns: Mapping[str, tuple[str, ...]] = {}
    #: Where the labels were texts.
    classes: tuple[str, ...] = ()


def _texts_of(card: ModelCard | None) -> Texts:
    if card is None:
        return Texts()
    return Texts(dict(card.categories), _without_numbers(card.classes))


def _without_numbers(classes: Sequence[int | str]) -> tuple[str, ...]:
    """The classes that are texts; those that only say which number they are stand for themselves."""
    texts = tuple(label for label in classes if isinstance(label, str))
    return () if texts == tuple(map(str, range(len(texts)))) else texts


def _compare_texts(what: str, known: tuple[str, ...], given: tuple[str, ...]) -> None:
    """The same number must stand for the same text."""
    if known == given:
        return
    new = [text for text in given if text not in known]
    gone = [text for text in known if text not in given]
    told = [f"new are {_some(new)}"] if new else []
    told += [f"{_some(gone)} are not there"] if gone else []
    raise DataError(
        f"channel {MODEL_CHANNEL}: {what} of channel train has other texts than the former model knows:"
        f" {'; '.join(told) or 'their order'}",
        hint="give rows with the same texts, numbers of your own in their place, or train without the channel",
    )


def _some(texts: Sequence[str]) -> str:
    most = 5
    return ", ".join(map(short, texts[:most])) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def check_names(names: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse columns that are not those that a former model knows by name; where one has no names, their place counts.

    Raises:
        DataError: Their number, or a name, differs.
    """
    if not names:
        return
    told = f"channel {MODEL_CHANNEL}: the former model"
    hint = "give the columns of the former job, in the same order"
    if len(names) != len(columns):
        raise DataError(f"{told} has {len(names):,} features, channel train has {len(columns):,}", hint=hint)
    if not features_of(columns).names:
        return
    for place, (was, now) in enumerate(zip(names, columns, strict=True), start=1):
        if was != now:
            raise DataError(f"{told} calls feature {place} {was!r}, channel train calls it {now!r}", hint=hint)


def _read_card(directory: Path) -> ModelCard | None:
    try:
        return read_card(directory)
    except DataError:
        if (directory / CARD_FILE).exists():
            raise
        return None  # of somebody else, who may call any file model.json


def _list(channel: Channel) -> list[Path]:
    if channel.input_mode == "Pipe":
        raise DataError(f"channel {MODEL_CHANNEL}: a model cannot be read from a pipe", hint="use input mode File")
    if channel.path.is_file():  # a script that is started by hand is given any path
        return [channel.path]
    try:
        files = sorted(path for path in channel.path.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"channel {MODEL_CHANNEL}: {channel.path} cannot be read: {error.strerror}", hint=_HINT
        ) from error
    if not files:
        raise DataError(f"channel {MODEL_CHANNEL}: there is no file in {channel.path}", hint=_HINT)
    return files


def _unpack(archive: Path) -> Path:
    with contextlib.ExitStack() as stack:
        try:
            directory = stack.enter_context(temporary_directory(_PREFIX))
            most = toolkit.current_job().settings.source_bytes
            extract(archive, directory, shown=f"{MODEL_CHANNEL}/{archive.name}", most_bytes=most)
        except ProgramError as error:
            hint = f"{_HINT}; trainbox_source_bytes says how much it may hold"
            raise DataError(f"channel {MODEL_CHANNEL}: {error.message}", hint=hint) from error
        except OSError as error:
            raise DataError(f"channel {MODEL_CHANNEL}: {archive.name} cannot be unpacked: {error.strerror}") from error
        atexit.register(stack.pop_all().close)
        return directory
