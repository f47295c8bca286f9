"""A request that a model can answer, made from the sample rows of its card. Pure."""

import shlex

import msgspec

from trainbox.contract.model_card import ModelCard, SampleRow

#: More columns than a person wants to see on one line: a sparse row names only those that it has.
_MOST_COLUMNS = 1_000
_IMAGE_DIMENSIONS = 3


class SampleRequest(msgspec.Struct, frozen=True):
    """A body with its type."""

    content_type: str
    body: str


def make_request(card: ModelCard) -> SampleRequest | None:
    """Return the request of the card's first sample row; None where it has none, or takes images."""
    if not card.samples or len(card.shape) == _IMAGE_DIMENSIONS:
        return None
    row = card.samples[0]
    if card.features.count > _MOST_COLUMNS and not card.categories:
        return SampleRequest("text/libsvm", _as_libsvm(row, card))
    return SampleRequest("text/csv", _as_csv(row, card))


def _as_csv(row: SampleRow, card: ModelCard) -> str:
    absent = "0" if card.absent == "zero" else ""
    cells = (row.values.get(name) for name in card.features.listed())
    return (card.delimiter or ",").join(absent if cell is None else _cell(cell) for cell in cells)


def _as_libsvm(row: SampleRow, card: ModelCard) -> str:
    places = {place: value for name, value in row.values.items() if (place := card.features.place(name)) is not None}
    return " ".join(f"{place}:{_cell(value)}" for place, value in sorted(places.items()))


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return '"' + value.replace('"', '""') + '"' if set(value) & set('",;\t\n\r ') else value
    return repr(float(value)).removesuffix(".0")


def curl_command(request: SampleRequest, url: str, path: str = "/invocations") -> str:
    """Return the command for a shell that sends a request; a cell that begins with @ is no file."""
    argv = ["curl", "-s", "-H", f"Content-Type: {request.content_type}", "--data-raw", request.body]
    return shlex.join([*argv, f"{url}{path}"])


def schema_line(card: ModelCard) -> str:
    """Return what a model takes and gives, in one line."""
    names = card.features.names
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")  # noqa: PLR2004 - fits a line
    columns = f"{card.features.count:,} features" + (f" ({shown})" if names else "")
    if len(card.shape) == _IMAGE_DIMENSIONS:
        columns = f"images of {' x '.join(map(str, card.shape))}"
    classes = [str(name) for name in card.classes]
    many = ", …" if len(classes) > 5 else ""  # noqa: PLR2004 - fits a line
    gives = f"{len(classes)} classes ({', '.join(classes[:5])}{many})" if classes else "a number"
    return f"{card.framework} {card.algorithm}, {card.objective}: {columns} -> {gives}"
