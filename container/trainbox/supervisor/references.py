"""Asks Secrets Manager and the Parameter Store for the secrets that a request refers to."""

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trainbox.contract.credentials.references import VARIABLE, Reference
from trainbox.contract.environment import LONGEST_VARIABLE_BYTES
from trainbox.contract.job import Wanted
from trainbox.contract.text import did_you_mean
from trainbox.errors import SecretError

if TYPE_CHECKING:
    from botocore.client import BaseClient

Log = Callable[[str], None]

#: Without a network (isolation) botocore would try for five minutes.
_CONNECT_SECONDS = 5
_READ_SECONDS = 10
_TRIES = 3
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_NETWORK_HINT = (
    "the job needs a way to the service: an endpoint of the VPC or a NAT gateway, and no network isolation; and"
    " credentials (the role of the job, or on this machine those of the shell)"
)
_HINTS = {
    "secretsmanager": "the role of the job needs secretsmanager:GetSecretValue on it, and kms:Decrypt on its own key",
    "ssm": "the role of the job needs ssm:GetParameter on it, and kms:Decrypt on its own key",
}
_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})


def resolve(wanted: Wanted, log: Log) -> dict[str, str]:
    """Return the values of all that the request refers to, by reference.

    Each secret is asked for once, however many of its keys are needed.

    Args:
        wanted: What the request refers to.
        log: Gets a line for each secret, before it is asked for.

    Raises:
        SecretError: One cannot be read; the message names the reference, and nothing of the value.
    """
    contents: dict[Reference, str] = {}
    values: dict[str, str] = {}
    for reference in wanted.references:
        whole = _whole(reference)
        if whole not in contents:
            log(f"asking {reference.service} for {reference.name}")
            contents[whole] = _ask(whole, wanted.region)
        values[reference.text] = _usable(_pick(contents[whole], reference), reference)
    if len(json.dumps(values)) > LONGEST_VARIABLE_BYTES - len(VARIABLE):
        raise SecretError(
            f"the {len(values)} secrets of this job are longer than Linux passes in one variable"
            f" ({LONGEST_VARIABLE_BYTES} bytes)",
            hint="let the script ask for the long ones itself",
        )
    return values


def _whole(reference: Reference) -> Reference:
    """What is asked for: several references may name keys of one secret."""
    return Reference("", reference.service, reference.name, stage=reference.stage, version=reference.version)


def _ask(reference: Reference, region: str) -> str:
    place = f"{reference.service} {reference.name}"
    try:
        import boto3  # noqa: PLC0415 - a quarter of a second and 20 MB that most jobs never need
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError, NoRegionError  # noqa: PLC0415
    except ImportError as error:
        hint = "install boto3 in the image (pip install 'trainbox[s3]')"
        raise SecretError(f"{place} cannot be asked for: {error}", hint=hint) from error
    retries = {"total_max_attempts": _TRIES, "mode": "standard"}
    config = Config(connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS, retries=retries)
    try:
        client = boto3.client(reference.service, region_name=reference.region or region or None, config=config)
        _require_private(client, place)
        return _content(client, reference)
    except ClientError as error:
        answer = error.response.get("Error", {})
        code = str(answer.get("Code", ""))
        hint = _HINTS[reference.service] if code in _DENIED else "look at its name, and at the region of the job"
        raise SecretError(f"{place} cannot be read: {code}: {answer.get('Message', '')}", hint=hint) from None
    except NoRegionError as error:
        hint = "set AWS_REGION (SageMaker does), or give the ARN, which names the region, in place of the name"
        raise SecretError(f"{place} cannot be read: {error}", hint=hint) from None
    except (BotoCoreError, ValueError) as error:  # ValueError: the endpoint is no URL
        raise SecretError(f"{place} cannot be read: {error}", hint=_NETWORK_HINT) from None


def _require_private(client: "BaseClient", place: str) -> None:
    """Refuse an endpoint to which the answer would come in the clear."""
    url = urlsplit(str(client.meta.endpoint_url))
    if url.scheme != "https" and url.hostname not in _LOOPBACK:
        raise SecretError(
            f"{place} is not asked for: the endpoint {url.scheme}://{url.hostname} is not encrypted",
            hint="AWS_ENDPOINT_URL and its relatives must begin with https://",
        )


def _content(client: Any, reference: Reference) -> str:  # noqa: ANN401 - botocore makes its clients as it runs
    if reference.service == "ssm":
        return str(client.get_parameter(Name=reference.name, WithDecryption=True)["Parameter"]["Value"])
    which = {"VersionStage": reference.stage, "VersionId": reference.version}
    answer = client.get_secret_value(SecretId=reference.name, **{name: value for name, value in which.items() if value})
    if "SecretString" not in answer:
        raise SecretError(f"secretsmanager {reference.name} holds bytes (SecretBinary), expected text")
    return str(answer["SecretString"])


def _pick(content: str, reference: Reference) -> str:
    """The whole, or the value of the key that is asked for."""
    if not reference.json_key:
        return content
    place = f"{reference.service} {reference.name}"
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):  # it quotes what it has read
        found = None
    if not isinstance(found, dict):
        raise SecretError(
            f"{place} is not a JSON object: it has no key {reference.json_key!r}",
            hint=f"{{{{resolve:secretsmanager:{reference.name}}}}} stands for the whole of it",
        )
    if reference.json_key not in found:
        like = did_you_mean(reference.json_key, found)
        raise SecretError(f"{place} has no key {reference.json_key!r}{like}", hint="look at the keys of the secret")
    value = found[reference.json_key]
    return value if isinstance(value, str) else json.dumps(value)


def _usable(value: str, reference: Reference) -> str:
    """What can be an argument and a variable."""
    try:
        os.fsencode(value)
        usable = "\0" not in value
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise SecretError(
            f"{reference.text} holds what no argument or variable can: a NUL, or text that is not Unicode",
            hint="encode it, as base64 for example",
        )
    return value
