"""Which licence a Python distribution has, as SPDX names it where that can be told."""

import re
from collections.abc import Mapping
from typing import Any

#: Of the classifiers those that name one licence: https://spdx.org/licenses/. "BSD License" does not say which.
_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
#: What people write into `License:` or over the text of a licence.
_WORDS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "isc license": "ISC",
    "mit license": "MIT",
    "mit license (mit)": "MIT",
    "the mit license": "MIT",
    "the mit license (mit)": "MIT",
}
_IDENTIFIER = re.compile(
    r"[A-Za-z][A-Za-z0-9.]*(-[A-Za-z]+)*-[0-9][A-Za-z0-9.]*(-[A-Za-z]+)*|MIT|ISC|0BSD|Zlib|Unlicense"
)
_OPERATORS = frozenset({"AND", "OR", "WITH"})
_LONGEST = 100


def licence_of(distribution: Mapping[str, Any]) -> tuple[str, bool] | None:
    """The licence, and whether that is an SPDX expression rather than words; None where nothing says one.

    In the order of how well it is defined: the expression of PEP 639, the old field where it is one, what the field's
    words and the first line of the licence's text are known to mean, a classifier.
    """
    if expression := distribution["licence_expression"]:
        return expression, True
    field, head = (str(distribution[key] or "").strip() for key in ("licence", "licence_head"))
    if _is_expression(field):
        return field, True
    for words in (field, head):
        if known := _WORDS.get(words.lower().rstrip(".")):
            return known, True
    classified = [each.rpartition(" :: ")[2] for each in distribution["licence_classifiers"]]
    if len(classified) == 1 and classified[0] in _CLASSIFIERS:
        return _CLASSIFIERS[classified[0]], True
    said = ", ".join(each for each in classified if each != "OSI Approved") or field or head
    return (said.splitlines()[0][:_LONGEST], False) if said else None


def _is_expression(text: str) -> bool:
    words = re.split(r"[\s()]+", text.strip("()")) if 0 < len(text) <= _LONGEST else [""]
    return all(word in _OPERATORS or _IDENTIFIER.fullmatch(word) for word in words)
