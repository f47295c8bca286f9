"""Encoders of raw samples: layers that carry the statistics of the training data in the model itself.

So an exported model takes rows and pixels as they are in the channel, without any preparation by its caller.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainbox.errors import HyperparameterError

_WIDEST = 32


class Columns(nn.Module):
    """Rows of a table as a network likes them: numbers standardized, missing ones marked, codes embedded.

    Args:
        rows: n x features of the training data; a missing value is NaN.
        names: Of the features.
        categorical: Those whose numbers are codes; all that training has not seen, or that are missing, are one code.
        counts: Of some of these how many codes there are, from 0 on, whether or not the rows have all of them.

    Raises:
        HyperparameterError: There is no such column.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        rows: Tensor,
        names: Sequence[str],
        categorical: Sequence[str] = (),
        counts: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        for name in categorical:
            if name not in names:
                raise HyperparameterError(
                    f"categorical: there is no column {name!r}", hint=f"the columns are {', '.join(names)}"
                )
        self.numbers = [index for index, name in enumerate(names) if name not in categorical]
        self.codes = [list(names).index(name) for name in categorical]
        mean, scale = statistics(rows[:, self.numbers])
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.embeddings = nn.ModuleList()
        width = 2 * len(self.numbers)
        for place, index in enumerate(self.codes):
            count = (counts or {}).get(names[index])
            given = torch.unique(rows[:, index][~rows[:, index].isnan()])
            values = given if count is None else torch.arange(count, dtype=rows.dtype)
            self.register_buffer(f"values_{place}", values)
            size = min(_WIDEST, len(values) // 2 + 1)
            self.embeddings.append(nn.Embedding(len(values) + 1, size))
            width += size
        #: Of what comes out.
        self.width = width

    def forward(self, rows: Tensor) -> Tensor:
        """From n x features to n x width."""
        standard = (rows[:, self.numbers] - self.mean) / self.scale
        parts = [standard.nan_to_num(0.0), standard.isnan().float()]
        for place, (index, embed) in enumerate(zip(self.codes, self.embeddings, strict=True)):
            values, given = self.get_buffer(f"values_{place}"), rows[:, index].contiguous()
            code = torch.searchsorted(values, given).clamp(max=len(values) - 1)
            parts.append(embed(torch.where(values[code] == given, code + 1, 0)))
        return torch.cat(parts, dim=1)


class Pixels(nn.Module):
    """Images standardized, each channel of their colours by its own mean.

    Args:
        images: n x channels x height x width of the training data, of any numbers.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        mean, scale = statistics(images.transpose(0, 1).flatten(1).T)
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("scale", scale[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """The same shape, around 0."""
        return (images.float() - self.mean) / self.scale


def statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, of what is there; the latter is never 0."""
    columns = [column.double() for column in values.T]
    there = [column[~column.isnan()] for column in columns]
    means = torch.tensor([float(column.mean()) if len(column) else 0.0 for column in there])
    scales = torch.tensor([float(column.std(correction=0)) if len(column) else 0.0 for column in there])
    return means, torch.where(scales > 0, scales, 1.0)
