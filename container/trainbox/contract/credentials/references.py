"""References to secrets in hyperparameters and variables, as CloudFormation writes them, and what they stand for.

`{{resolve:secretsmanager:NAME-OR-ARN}}`, `{{resolve:secretsmanager:NAME-OR-ARN:SecretString:JSON-KEY}}` (then perhaps
`:VERSION-STAGE` or `::VERSION-ID`), `{{resolve:ssm:NAME}}` and `{{resolve:ssm-secure:NAME}}` (then perhaps `:VERSION`);
within a longer text, too. `launch.references` asks for the values.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from trainbox.contract.hyperparameters import decode
from trainbox.errors import ContractError

#: How the supervisor hands the values on to all that it starts: a `Resolved` as JSON.
VARIABLE = "TRAINBOX_RESOLVED"
SYNTAX = (
    "write {{resolve:secretsmanager:NAME-OR-ARN:SecretString:JSON-KEY}}, {{resolve:secretsmanager:NAME-OR-ARN}} or"
    " {{resolve:ssm-secure:NAME}}"
)
_BEGINNING = "{{resolve:"
_REFERENCE = re.compile(r"\{\{resolve:[^{}]*+\}\}")
#: Of `arn:PARTITION:SERVICE:REGION:ACCOUNT:secret:NAME`, and of the same with `parameter/NAME`.
_ARN_PARTS = {"secretsmanager": 7, "ssm": 6}
_MOST_PARTS = {"secretsmanager": 4, "ssm": 1}


class Reference(msgspec.Struct, frozen=True):
    """What to ask for."""

    #: As it stands in the request.
    text: str
    service: Literal["secretsmanager", "ssm"]
    #: A name or an ARN; of a parameter with its version.
    name: str
    json_key: str = ""
    stage: str = ""
    version: str = ""

    @property
    def region(self) -> str:
        """The region that an ARN names; empty where there is none."""
        return self.name.split(":")[3] if self.name.startswith("arn:") else ""


def is_reference(text: str) -> bool:
    """Whether a text is a reference and nothing else."""
    return text.startswith(_BEGINNING) and _REFERENCE.fullmatch(text) is not None


def find_references(value: object, place: str) -> Iterator[Reference]:
    """Yield the references in a value, decoded, and in all that is in it.

    Args:
        value: Text, or what JSON can say.
        place: Where it stands, for messages.

    Raises:
        ContractError: One begins as a reference, and is none.
    """
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from find_references(item, place)
    elif isinstance(value, str) and _BEGINNING in value:
        found = _REFERENCE.findall(value)
        if len(found) != value.count(_BEGINNING):
            raise ContractError(f"{place}: {_BEGINNING} begins a reference that has no end", hint=SYNTAX)
        for text in found:
            yield read_reference(text, place)


def read_reference(text: str, place: str) -> Reference:
    """Parse one reference.

    Raises:
        ContractError: It is none.
    """
    wrong = ContractError(f"{place}: {text} is no reference to a secret", hint=SYNTAX)
    named, _, rest = text.removeprefix(_BEGINNING).removesuffix("}}").partition(":")
    service: Literal["secretsmanager", "ssm"]
    if named == "secretsmanager":
        service = "secretsmanager"
    elif named in {"ssm", "ssm-secure"}:
        service = "ssm"
    else:
        raise wrong
    parts = rest.split(":")
    length = _ARN_PARTS[service] if parts[0] == "arn" else 1
    name, more = ":".join(parts[:length]), parts[length:]
    if not parts[length - 1 : length] or not parts[length - 1] or len(more) > _MOST_PARTS[service]:
        raise wrong
    if service == "ssm":
        if more and not more[0].isdigit():
            raise wrong
        return Reference(text, service, ":".join([name, *more]))
    kind, json_key, stage, version = (*more, "", "", "", "")[:4]
    if kind not in {"", "SecretString"} or (stage and version):
        raise wrong
    return Reference(text, service, name, json_key, stage, version)


class Resolved(msgspec.Struct, frozen=True):
    """What the supervisor has been told."""

    #: By reference, those of hyperparameters: variables have theirs already.
    values: dict[str, str] = {}
    #: The variables that had references.
    hide: tuple[str, ...] = ()


def read_resolved(env: Mapping[str, str]) -> Resolved:
    """What the supervisor has been told; nothing where no supervisor is above this process.

    Raises:
        ContractError: The variable is malformed.
    """
    if not env.get(VARIABLE):
        return Resolved()
    try:
        return msgspec.json.decode(env[VARIABLE], type=Resolved)
    except (ValueError, RecursionError):  # its text may hold a secret
        raise ContractError(f"the variable {VARIABLE}: only the supervisor sets it", hint="leave it out") from None


def fill_in(value: object, values: Mapping[str, str]) -> object:
    """The same value, decoded, with each reference replaced, where its value is known; text stays text."""
    if isinstance(value, dict):
        return {name: fill_in(item, values) for name, item in value.items()}
    if isinstance(value, list):
        return [fill_in(item, values) for item in value]
    if isinstance(value, str) and _BEGINNING in value:
        return _REFERENCE.sub(lambda found: values.get(found[0], found[0]), value)
    return value


def fill_in_raw(raw: object, values: Mapping[str, str]) -> object:
    """The same for a value as SageMaker passes it: what is read from it is what `fill_in` gives."""
    filled = fill_in(decode(raw), values)
    if not isinstance(raw, str) or not isinstance(filled, str):
        return json.dumps(filled) if isinstance(raw, str) else filled
    return json.dumps(filled) if filled.startswith('"') else filled


def has_reference(value: object) -> bool:
    """Whether a value, as it came or decoded, has a reference in it."""
    return _BEGINNING in (value if isinstance(value, str) else json.dumps(value))


def fill_in_variables(
    env: Mapping[str, str], values: Mapping[str, str], of_hyperparameters: Collection[str]
) -> dict[str, str]:
    """The same environment, with each reference replaced, and with what those need that read the request anew.

    Args:
        env: The environment of the supervisor.
        values: What it has been told, by reference.
        of_hyperparameters: The references in hyperparameters. Values of variables are passed on nowhere else: a key may
            be among them that not all processes get.
    """
    filled = {name: str(fill_in(value, values)) for name, value in env.items()}
    passed_on = {reference: value for reference, value in values.items() if reference in of_hyperparameters}
    resolved = Resolved(passed_on, tuple(name for name in env if filled[name] != env[name]))
    return {**filled, VARIABLE: msgspec.json.encode(resolved).decode()}


def names_with_references(values: Mapping[str, object]) -> Iterable[str]:
    """Which of the values have a reference in them."""
    return [name for name, value in values.items() if has_reference(value)]
