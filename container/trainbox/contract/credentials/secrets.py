"""Which values are secret, by their names and within URLs, and texts without them."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from trainbox.contract.credentials.references import is_reference
from trainbox.contract.hyperparameters import decode

REDACTED = "***"
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

# -- words of names: each stands for itself, not for a part of a longer one --------------------------------------------

_SECRET_WORDS = frozenset(
    {
        *("auth", "authorization", "bearer", "cookie", "cookies", "cred", "credential", "credentials", "creds", "dsn"),
        *("jwt", "oauth", "pass", "passcode", "passphrase", "passwd", "password", "passwords", "pat", "pem", "pwd"),
        *("sas", "secret", "secrets", "signature", "webhook", "webhooks"),
    }
)
#: No other word ends so: `PGPASSWORD`, `clientsecret`.
_SECRET_ENDINGS = ("password", "passwd", "passphrase", "secret", "credentials")
#: `api_key` is secret; `sort_key`, `num_keys` and `primary_key` are not.
_WHOSE_KEY = frozenset(
    {
        *("access", "account", "admin", "aes", "api", "app", "application", "auth", "consumer", "decryption", "deploy"),
        *("encryption", "fernet", "gpg", "hmac", "ingestion", "instrumentation", "jwt", "licence", "license", "master"),
        *("pgp", "private", "role", "rsa", "secret", "service", "shared", "signing", "ssh", "ssl", "storage"),
        *("subscription", "tls", "unseal", "webhook"),
        *("anthropic", "aws", "azure", "cohere", "comet", "datadog", "gcp", "gemini", "github", "gitlab", "google"),
        *(
            "hf",
            "huggingface",
            "kaggle",
            "mistral",
            "neptune",
            "openai",
            "pinecone",
            "sendgrid",
            "stripe",
            "twilio",
            "wandb",
        ),
    }
)
#: `api_tokens` are secrets, `max_tokens` and `num_tokens_seen` are counted ones.
_WHOSE_TOKENS = frozenset(
    {
        *("access", "api", "auth", "bearer", "bot", "deploy", "hf", "id", "jwt", "oauth", "personal", "private"),
        *("refresh", "registry", "sas", "secret", "security", "session", "user", "vault"),
    }
)
#: A token that belongs to a text: `eos_token`, `first_token`.
_TOKENS_OF_TEXT = frozenset(
    {
        *("additional", "audio", "begin", "blank", "bos", "class", "cls", "count", "decoder", "end", "eos", "eot"),
        *("first", "image", "last", "mask", "max", "mean", "min", "n", "new", "newline", "next", "num", "oov", "pad"),
        *("patch", "per", "placeholder", "prefix", "prompt", "register", "sentinel", "sep", "sos", "special", "start"),
        *("stop", "sub", "suffix", "target", "text", "total", "unk", "unknown", "video", "visual", "word"),
    }
)
_AFTER_TOKEN_OF_TEXT = frozenset(
    {
        *("accuracy", "budget", "classification", "dim", "dropout", "emb", "embedding", "embeddings", "frequency"),
        *(
            "fraction",
            "healing",
            "id",
            "ids",
            "idx",
            "indices",
            "label",
            "labels",
            "level",
            "loss",
            "mask",
            "merging",
            "mixing",
            "position",
        ),
        *("positions", "pruning", "shift", "type", "wav", "weight", "weights", "wise"),
    }
)
_INNOCENT_BEFORE = {
    "pass": frozenset(
        {
            *("all", "backward", "band", "by", "each", "first", "forward", "high", "last", "low", "may", "multi", "n"),
            *("num", "one", "per", "second", "single", "two"),
        }
    ),
    "signature": frozenset({"call", "function", "input", "model", "output", "serving"}),
}
#: Of short words, which have other meanings, what may follow.
_SECRET_BEFORE = {"pass": ("", "word", "phrase"), "sas": ("", "token", "uri", "url"), "pat": ("",)}
#: Words at the end that say: it is not the secret, it tells something about it.
_ABOUT = frozenset(
    {
        *("age", "algorithm", "arn", "col", "cols", "column", "columns", "count", "dir", "directory", "domain"),
        *("enabled", "endpoint", "expires", "expiry", "field", "fields", "file", "filename", "folder", "format"),
        *("host", "index", "length", "limit", "location", "method", "methods", "mode", "name", "names", "path"),
        *("pattern", "policy", "port", "provider", "rate", "region", "required", "scheme", "size", "sock", "socket"),
        *("timeout", "ttl", "type", "types", "uri", "url", "version"),
    }
)
#: Who has such an address needs no more.
_SECRET_ADDRESSES = frozenset({"credential", "credentials", "sas", "webhook", "webhooks"})
_PAIRS = frozenset({("pass", "word"), ("pass", "phrase"), ("connection", "string"), ("connection", "str")}) | frozenset(
    {("conn", "string"), ("conn", "str")}
)
_JOINED = frozenset(
    {
        *(f"{whose}key{s}" for whose in _WHOSE_KEY for s in ("", "s")),
        *(f"{whose}token{s}" for whose in _WHOSE_TOKENS for s in ("", "s")),
        *("".join(pair) for pair in _PAIRS),
    }
)
#: What every shell has.
_DIRECTORIES_OF_SHELLS = frozenset({"PWD", "OLDPWD"})

# -- values ------------------------------------------------------------------------------------------------------------

#: A shorter value is never replaced in text, and neither is a number: text with holes says nothing any more.
_SHORTEST_SECRET = 8
_NUMBER = re.compile(r"[\d\s.,:_+-]*+(?:[eE][+-]?\d++)?")
#: What stands in the place of a secret and is none.
_COMMON_WORDS = frozenset(
    {
        *("anonymous", "automatic", "changeme", "credentials", "disabled", "localhost", "optional", "password"),
        *("postgres", "required", "sagemaker", "training", "undefined", "username", "validation"),
    }
)
#: Where a secret is: `GOOGLE_APPLICATION_CREDENTIALS=/opt/ml/…`. What begins so by chance is none in a million.
_PLACE = re.compile(r"(?:/(?:dev|etc|home|mnt|opt|root|run|srv|tmp|usr|var|Users)/|~/|arn:aws[a-z-]*:)\S*")
_NO_PORT = r"(?!\d{1,5}(?:[/\s\"',;)]|\Z))"
#: The user, and the password up to the last `@` of this part of the URL, or beyond a slash that nobody has encoded.
_USER_INFORMATION = re.compile(rf"""://([^\s/@:"'`<>(),;]*+)(?::{_NO_PORT}([^\s/]*(?=@)|[^\s"]{{1,200}}(?=@)))?@""")
#: A user's name that may be a token is not shown.
_USER = re.compile(r"[A-Za-z_][A-Za-z_.+-]{0,15}|[\w-]{0,7}|\*\*\*")
_PARAMETER = re.compile(r"""(?<=[?&;])([\w.-]{1,64}+)=([^\s&;#"'<>`]++)""")
_SECRET_PARAMETERS = frozenset({"key", "sig"})


def is_secret(name: str) -> bool:
    """Whether a name says that its value is nobody's business: `api_token`, `DB-PASSWORD`, `secretKey`."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or name in _DIRECTORIES_OF_SHELLS:
        return False
    if words[0] == "trainbox" and words[-1] == "key":  # ours, which members and checkpoints are told by
        return True
    return any(_is_secret_at(words, place) for place in range(len(words)))


def _is_secret_at(words: list[str], place: int) -> bool:
    word = words[place]
    before = words[place - 1] if place else ""
    after = words[place + 1] if place + 1 < len(words) else ""
    if after and words[-1] in _ABOUT and not (words[-1] in {"url", "uri"} and word in _SECRET_ADDRESSES):
        return False
    if word in {"key", "keys"}:
        return before in _WHOSE_KEY
    if word in {"token", "tokens"}:
        one_of_many = word == "tokens" and len(words) > 1
        innocent = one_of_many or before in _TOKENS_OF_TEXT
        return after not in _AFTER_TOKEN_OF_TEXT and (before in _WHOSE_TOKENS or not innocent)
    if before in _INNOCENT_BEFORE.get(word, ()) or after not in _SECRET_BEFORE.get(word, (after,)):
        return False
    if word == "secrets" and after == "manager":  # the service: AWS_ENDPOINT_URL_SECRETS_MANAGER
        return False
    return word in _SECRET_WORDS or word in _JOINED or word.endswith(_SECRET_ENDINGS) or (word, after) in _PAIRS


def redact_arguments(arguments: Iterable[str]) -> Iterator[str]:
    """Yield arguments of any style, with the values of those that have a secret name replaced."""
    last = ""
    for argument in arguments:
        name, has_value, value = argument.partition("=")
        is_flag = argument.startswith("-")
        if has_value and is_secret(name):
            yield f"{name}={_hidden(value)}"
        elif last and not is_flag:
            yield str(_hidden(argument))
        else:
            yield without_secrets(argument, ())
        last = name if is_flag and not has_value and is_secret(name) else ""


def redact(values: Mapping[str, object], also: Collection[str] = ()) -> dict[str, object]:
    """The same values, those with a secret name replaced, also within JSON objects and lists.

    Args:
        values: By name.
        also: Names that are secret, whatever they say.
    """
    return {
        name: _hidden(value) if name in also or is_secret(name) else _redact_within(value)
        for name, value in values.items()
    }


def _hidden(value: object) -> object:
    """Nothing of a secret is in a switch, in nothing, or where it is: a command that is printed still works."""
    inner = decode(value)
    if inner is None or isinstance(inner, bool) or inner == "" or (isinstance(inner, str) and _is_place(inner)):
        return value
    return REDACTED


def _is_place(text: str) -> bool:
    return is_reference(text) or _PLACE.fullmatch(text) is not None


def _redact_within(value: object) -> object:
    if isinstance(value, dict):
        return redact(value)
    if isinstance(value, list):
        return [_redact_within(item) for item in value]
    inner = decode(value)  # a JSON object as the text that SageMaker passes it as
    if isinstance(inner, dict | list):
        redacted = _redact_within(inner)
        return value if redacted == inner else json.dumps(redacted)
    return without_secrets(value, ()) if isinstance(value, str) else value


def secrets(values: Mapping[str, object], also: Collection[str] = ()) -> tuple[str, ...]:
    """The values that must appear in no text, longest first, so that one within another leaves no rest.

    Args:
        values: By name.
        also: Names that are secret, whatever they say.
    """
    return _longest_first(filter(_can_be_hidden, _secrets_within(values, also)))


def _longest_first(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*values}, key=lambda value: (-len(value), value)))


def _can_be_hidden(text: str) -> bool:
    return len(text) >= _SHORTEST_SECRET and text.lower() not in _COMMON_WORDS and not _NUMBER.fullmatch(text)


def _secrets_within(values: Mapping[str, object], also: Collection[str]) -> Iterator[str]:
    for name, value in values.items():
        yield from secrets_of_urls(str(value))
        if name in also or is_secret(name):
            yield from _texts(value)
            continue
        inner = decode(value)
        for item in inner if isinstance(inner, list) else [inner]:
            if isinstance(item, dict):
                yield from _secrets_within(item, ())


def _texts(value: object) -> Iterator[str]:
    """A secret as it came, as it is read, and each of its parts."""
    inner = decode(value)
    if isinstance(inner, dict | list):
        if isinstance(value, str):
            yield value
        for part in inner.values() if isinstance(inner, dict) else inner:
            yield from _texts(part)
    elif not _is_place(str(inner)):
        yield str(value)
        yield str(inner)


def secrets_of_urls(text: str) -> Iterator[str]:
    """Passwords, tokens in place of a user's name and signatures of the URLs in a text."""
    for user, password in _USER_INFORMATION.findall(text) if "://" in text else ():
        if password and not is_reference(password):
            yield from _as_typed(password)
        if not _USER.fullmatch(user):
            yield user
    for name, value in _PARAMETER.findall(text) if "=" in text else ():
        if _is_secret_parameter(name) and not is_reference(value):
            yield from _as_typed(value)


def _as_typed(text: str) -> Iterator[str]:
    """What stands in a URL, and what was encoded there."""
    yield text
    if "%" in text:
        from urllib.parse import unquote  # noqa: PLC0415 - three milliseconds that hardly any job needs

        yield unquote(text)


def _is_secret_parameter(name: str) -> bool:
    return name.lower() in _SECRET_PARAMETERS or is_secret(name)


def hidden_values(*sources: Mapping[str, object], also: Collection[str] = ()) -> tuple[str, ...]:
    """The secrets of all sources in every form in which a message may hold them; longest first, as `secrets` does it.

    A key of several lines is hidden line by line too, and any value also as `repr` and JSON escape it.

    Args:
        sources: Values by name.
        also: Names that are secret, whatever they say.
    """
    values = {value for source in sources for value in secrets(source, also)}
    escaped = {form(value)[1:-1] for value in values for form in (repr, json.dumps)}
    lines = {line for value in values for line in value.splitlines() if _can_be_hidden(line)}
    return _longest_first(values | escaped | lines)


def without_secrets(text: str, hidden: Iterable[str]) -> str:
    """A text with every one of `hidden` replaced, and with no password, token or signature in any URL."""
    for value in hidden:
        text = text.replace(value, REDACTED)
    if "://" in text:
        text = _USER_INFORMATION.sub(_without_password, text)
    return _PARAMETER.sub(_without_value, text) if "=" in text else text


def _without_password(found: re.Match[str]) -> str:
    user, password = found.groups()
    shown = user if _USER.fullmatch(user) else REDACTED
    if password is None:
        return f"://{shown}@"
    return f"://{shown}:{password if not password or is_reference(password) else REDACTED}@"


def _without_value(found: re.Match[str]) -> str:
    name, value = found.groups()
    return f"{name}={REDACTED}" if _is_secret_parameter(name) and not is_reference(value) else found[0]
