"""`--hp`, `--hp-env` and `--env`: values as they are given, those of files and those of the shell.

What comes from a file or from the shell stands in no argument list, which all users of a machine can read, and counts
as secret whatever its name says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from trainbox.errors import RunError

#: Far beyond what SageMaker takes; `/dev/zero` has no end.
_MOST_BYTES = 64 * 1024


class Origin(msgspec.Struct, frozen=True):
    """Where a value came from that is not in the command."""

    file: Path | None = None
    variable: str = ""


class Given(msgspec.Struct, frozen=True):
    """Values by name, and where those came from that are not in the command."""

    values: Mapping[str, str] = {}
    origins: Mapping[str, Origin] = {}


def pairs(given: Sequence[str], flag: str) -> dict[str, str]:
    """`NAME=VALUE` of a flag, as it stands there.

    Raises:
        RunError: There is no value, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            # The value is not repeated: it may be a secret whose name was forgotten.
            raise RunError(f"{flag} {name!r}: found no NAME=VALUE", hint=f"write it as '{flag} NAME=VALUE'")
        _require_new(name, found, flag)
        found[name] = value
    return found


def read_hyperparameters(given: Sequence[str], of_shell: Sequence[str], env: Mapping[str, str], cwd: Path) -> Given:
    """`--hp NAME=VALUE`, `--hp NAME=@FILE` and `--hp-env NAME[=VARIABLE]`.

    Args:
        given: What `--hp` was given.
        of_shell: What `--hp-env` was given.
        env: The environment of `trainbox run`.
        cwd: Where the paths of files begin.

    Raises:
        RunError: A file or a variable cannot be read, or a name is given twice.
    """
    found = _with_files(pairs(given, "--hp"), "--hp", cwd)
    for text in of_shell:
        name, equals, variable = text.partition("=")
        _require_new(name, found.values, "--hp-env")
        found = _with_variable(found, name, variable if equals else name, "--hp-env", env)
    return found


def read_variables(given: Sequence[str], env: Mapping[str, str], cwd: Path) -> Given:
    """`--env NAME=VALUE`, `--env NAME=@FILE` and `--env NAME`, which has the value of the shell.

    Args:
        given: What `--env` was given.
        env: The environment of `trainbox run`.
        cwd: Where the paths of files begin.

    Raises:
        RunError: A file or a variable cannot be read, or a name is given twice.
    """
    found = _with_files(pairs([text for text in given if "=" in text], "--env"), "--env", cwd)
    for name in [text for text in given if "=" not in text]:
        _require_new(name, found.values, "--env")
        found = _with_variable(found, name, name, "--env", env)
    return found


def _require_new(name: str, values: Mapping[str, str], flag: str) -> None:
    if name in values:
        raise RunError(f"{flag} {name}: given twice", hint="give it once")


def _with_variable(found: Given, name: str, variable: str, flag: str, env: Mapping[str, str]) -> Given:
    if not name or not env.get(variable):
        # What is not the name of a variable may be a secret whose name was forgotten.
        shown = variable if variable.isidentifier() else "…"
        raise RunError(f"{flag} {shown}: this shell has no such variable, or it is empty", hint="export it first")
    return Given({**found.values, name: env[variable]}, {**found.origins, name: Origin(variable=variable)})


def _with_files(given: Mapping[str, str], flag: str, cwd: Path) -> Given:
    values: dict[str, str] = {}
    origins: dict[str, Origin] = {}
    for name, value in given.items():
        if value.startswith("@") and not value.startswith("@@"):
            path = (cwd / Path(value[1:]).expanduser()).absolute()
            values[name], origins[name] = _read(path, f"{flag} {name}=@…"), Origin(file=path)
        else:
            values[name] = value.removeprefix("@")
    return Given(values, origins)


def _read(path: Path, place: str) -> str:
    """The content of a file, without the end of its last line; it may be a pipe (`<(pass show token)`)."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode()
    except OSError as error:
        hint = "a value that begins with @ is written with two of them: NAME=@@VALUE"
        raise RunError(f"{place}: {path} cannot be read: {error.strerror}", hint=hint) from None
    except UnicodeDecodeError as error:
        raise RunError(f"{place}: byte {error.start} of {path} is not UTF-8") from None
    if len(content) > _MOST_BYTES or not text.strip() or "\0" in text:
        why = "is empty" if not text.strip() else "has a NUL" if "\0" in text else f"has more than {_MOST_BYTES} bytes"
        raise RunError(f"{place}: {path} {why}")
    return text.removesuffix("\n").removesuffix("\r")


def escaped(value: str) -> str:
    """A value as a flag takes it."""
    return f"@{value}" if value.startswith("@") else value
