"""Turn the body of a request into rows of a model, by its content type."""

from trainbox.serving.decode_csv import decode_csv
from trainbox.serving.decode_json import decode_json, decode_json_lines
from trainbox.serving.features import FeaturePlan, Matrix
from trainbox.serving.media_types import InputType


def decode(body: bytes, content_type: InputType, plan: FeaturePlan) -> Matrix:
    """Return the rows of a body: float32, C-ordered, in the order of the model, a missing value is NaN.

    Args:
        body: The bytes, decompressed.
        content_type: What they are.
        plan: What the model expects.

    Raises:
        RequestError: The body cannot be used; with row, column, name and value as far as they are known.
    """
    if content_type.format == "CSV":
        return decode_csv(body, plan, content_type.header)
    if content_type.format == "JSON":
        return decode_json(body, plan)
    return decode_json_lines(body, plan)
