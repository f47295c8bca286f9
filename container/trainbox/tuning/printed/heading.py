"""The comments at the top of printed code: what to replace, and what to upload."""

from collections.abc import Sequence

from trainbox.tuning.printed.python_code import write_comment


def heading(needs: str, uploads: Sequence[str], parents: Sequence[str]) -> list[str]:
    """Pure: the first lines of printed code.

    Args:
        needs: The packages that the code needs.
        uploads: Commands to run first, in order.
        parents: Of the warm start.
    """
    lines = [
        f"The same search on SageMaker, by trainbox tune --print. Needs {needs}.",
        "Replace what begins with YOUR-, the account 111122223333 and the region.",
    ]
    if parents:
        lines.append("The warm start needs these as tuning jobs of SageMaker, this machine's are not known there.")
    if uploads:
        lines += ["Upload first:", *(f"  {command}" for command in uploads)]
    return [*(write_comment(line) for line in lines), ""]
