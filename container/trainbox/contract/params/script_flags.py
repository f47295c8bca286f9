"""The command line of a script that is started by hand: `--max_depth 5 --channel train=DIR`."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from trainbox.contract.params import Field
from trainbox.contract.text import did_you_mean
from trainbox.errors import HyperparameterError


class ScriptFlags(msgspec.Struct, frozen=True):
    """The command line of a script that was started by hand."""

    hyperparameters: Mapping[str, str] = {}
    channels: Mapping[str, Path] = {}
    help: bool = False


def parse_flags(arguments: Sequence[str]) -> ScriptFlags:
    """Pure: `--max_depth 5`, `--max_depth=5`, `-k 5`, a bare `--verbose` (true) and `--channel NAME=DIR`.

    Raises:
        HyperparameterError: An argument is unexpected, or a channel has no directory.
    """
    values: dict[str, str] = {}
    channels: dict[str, Path] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        name, has_value, value = flag.lstrip("-").partition("=")
        if not flag.startswith("-") or not name:
            raise HyperparameterError(f"unexpected argument {flag!r}", hint="write --name value")
        if not has_value and rest and not _is_flag(rest[0]):
            has_value, value = "=", rest.pop(0)
        if name == "channel":
            channel, _, directory = value.partition("=")
            if not channel or not directory:
                raise HyperparameterError(f"--channel: found {value!r}, expected NAME=DIRECTORY")
            channels[channel] = Path(directory)
        else:
            values[name] = value if has_value else "true"
    return ScriptFlags(values, channels, help="help" in values or "h" in values)


def _is_flag(text: str) -> bool:
    """Whether an argument begins a flag; `-1` and `-1e-3` are values."""
    try:
        float(text)
    except ValueError:
        return text.startswith("-") and text != "-"
    return False


def read_flags(arguments: Sequence[str], env: Mapping[str, str]) -> ScriptFlags:
    """Return the flags of this process; none where the supervisor wrote the arguments."""
    return ScriptFlags() if _are_of_supervisor(arguments, env) else parse_flags(arguments)


def _are_of_supervisor(arguments: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether the supervisor made these arguments, from hyperparameters which a script gets whole as well.

    The variable alone does not tell: programs that the script starts inherit it, and have arguments of their own.
    """
    made = env.get("SM_USER_ARGS")
    return made is not None and json.loads(made) == list(arguments)


def refuse_misspelt_channel(flags: ScriptFlags, known: Sequence[str], program: str) -> None:
    """Report `--chanel train=DIR` as a misspelt flag, not as an unknown hyperparameter.

    Raises:
        HyperparameterError: There is such a flag.
    """
    for name, value in flags.hyperparameters.items():
        if name.replace("-", "_") not in {one.replace("-", "_") for one in known} and "=" in value:
            like = did_you_mean(name, ["channel"])
            if like:
                raise HyperparameterError(
                    f"{program} has no flag --{name}{like.replace('channel', '--channel')}",
                    hint="write --channel NAME=DIRECTORY",
                )


def usage(fields: Sequence[Field], program: str) -> str:
    """Return the help of a script: each hyperparameter, and examples."""
    lines = [f"usage: {program} [--channel NAME=DIRECTORY …] [--HYPERPARAMETER VALUE …]", ""]
    for field in fields:
        default = "required" if field.required else f"default {field.default}"
        about = ", ".join(filter(None, [field.type, field.range, default]))
        lines.append(f"  --{field.name}  ({about})  {field.description}".rstrip())
    given = [(field.name, "VALUE" if field.required else field.default) for field in fields if field.required]
    given = given or [(field.name, field.default) for field in fields[:1]]
    flags = "".join(f" --{name} {shlex.quote(value)}" for name, value in given)
    settings = "".join(f" --hp {shlex.quote(f'{name}={value}')}" for name, value in given)
    lines += ["", "examples:", f"  python {program} --channel train=DIRECTORY{flags}"]
    lines.append(f"  trainbox run {program} --channel train=DIRECTORY{settings}")
    return "\n".join(lines)
