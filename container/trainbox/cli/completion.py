"""The verb `trainbox completion SHELL`: a script that makes a shell complete verbs, flags, choices and files.

It is made from the parsers themselves, so it knows every flag that they know.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from trainbox.supervisor.program.choice import bundled_scripts

#: What its help shows.
EXAMPLES = (
    "source <(trainbox completion bash)                        # in ~/.bashrc",
    "source <(trainbox completion zsh)                         # in ~/.zshrc, behind compinit",
    "trainbox completion fish > ~/.config/fish/completions/trainbox.fish",
)


class Flag(msgspec.Struct, frozen=True):
    """One flag of a verb."""

    words: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...] = ()


class Verb(msgspec.Struct, frozen=True):
    """One verb."""

    name: str
    help: str
    flags: tuple[Flag, ...]
    #: What stands first behind the verb: these words, and files where `takes_path` is set.
    words: tuple[str, ...] = ()
    takes_path: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("shell", metavar="SHELL", choices=tuple(SHELLS), help="bash, zsh or fish")


def run(args: argparse.Namespace) -> int:
    """Print the script of a shell; `args.parsers` gives the parsers of all verbs, each with its summary."""
    verbs = [read_verb(name, summary, parser) for name, (summary, parser) in args.parsers().items()]
    print(SHELLS[args.shell](verbs), end="")
    return 0


def read_verb(name: str, summary: str, parser: argparse.ArgumentParser) -> Verb:
    """What a parser knows."""
    actions = parser._actions  # noqa: SLF001 - argparse has no other way to list them
    flags = tuple(_flag(action) for action in actions if action.option_strings)
    first = next((action for action in actions if not action.option_strings), None)
    words = tuple(map(str, first.choices or ())) if first else ()
    takes_path = bool(first and first.dest == "script")
    if takes_path:
        words = tuple(script.removesuffix("_train") for script in bundled_scripts())
    return Verb(name, summary, flags, words, takes_path=takes_path)


def _flag(action: argparse.Action) -> Flag:
    text = action.help or ""
    help_text = text % {"prog": "trainbox", "default": action.default} if "%" in text else text
    return Flag(
        words=tuple(action.option_strings),
        help=help_text,
        takes_value=action.nargs != 0,
        choices=tuple(map(str, action.choices or ())),
    )


# ---- bash ----


def for_bash(verbs: Sequence[Verb]) -> str:
    """To be sourced: `source <(trainbox completion bash)`. Where it offers no word bash completes files."""
    return _BASH.format(
        verbs=" ".join(verb.name for verb in verbs),
        cases="\n".join(_bash_case(verb) for verb in verbs),
    )


_BASH = """\
# Completes the words of trainbox in bash: source <(trainbox completion bash)
_trainbox() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} verb=${{COMP_WORDS[1]}}
    local word words= flags= files=
    COMPREPLY=()
    # Bash takes --flag=value for three words.
    if [[ $cur == "=" ]]; then
        cur=
    elif [[ $prev == "=" ]]; then
        prev=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "{verbs} --help --version" -- "$cur"))
        return
    fi
    # What stands behind -- is the script's.
    for word in "${{COMP_WORDS[@]:2:COMP_CWORD-2}}"; do
        [[ $word == "--" ]] && return
    done
    case $verb in
{cases}
    *) return ;;
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$cur"))
    elif ((COMP_CWORD == 2)); then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
        if [[ $files ]]; then
            compopt -o filenames 2>/dev/null
            mapfile -t -O "${{#COMPREPLY[@]}}" COMPREPLY < <(compgen -f -- "$cur")
        fi
    fi
}}
complete -o bashdefault -o default -F _trainbox trainbox
"""


def _bash_case(verb: Verb) -> str:
    flags = " ".join(word for flag in verb.flags for word in flag.words)
    files = "yes" if verb.takes_path else ""
    lines = [f"    {verb.name})", f'        flags="{flags}" words="{" ".join(verb.words)}" files={files}']
    lines.append("        case $prev in")
    for flag in verb.flags:
        if flag.choices:
            reply = f'COMPREPLY=($(compgen -W "{" ".join(flag.choices)}" -- "$cur")); return'
            lines.append(f"        {'|'.join(flag.words)}) {reply} ;;")
    valued = [word for flag in verb.flags if flag.takes_value and not flag.choices for word in flag.words]
    if valued:
        lines.append(f"        {'|'.join(valued)}) return ;;")
    return "\n".join([*lines, "        esac", "        ;;"])


# ---- zsh ----


def for_zsh(verbs: Sequence[Verb]) -> str:
    """To be sourced behind `compinit`, or to be a file `_trainbox` in `$fpath`."""
    names = "\n".join(f"        {_quoted(f'{verb.name}:{verb.help}')}" for verb in verbs)
    scripts = " ".join(dict.fromkeys(word for verb in verbs if verb.takes_path for word in verb.words))
    return _ZSH.format(verbs=names, scripts=scripts, cases="\n".join(_zsh_case(verb) for verb in verbs))


_ZSH = """\
#compdef trainbox
# Completes the words of trainbox in zsh: source <(trainbox completion zsh)
_trainbox_script() {{
    _alternative 'names:bundled script:({scripts})' 'files:file:_files'
}}
_trainbox() {{
    local -a verbs
    verbs=(
{verbs}
    )
    if ((CURRENT == 2)); then
        _describe verb verbs
        return
    fi
    local verb=${{words[2]}}
    shift words
    ((CURRENT--))
    case $verb in
{cases}
    esac
}}
compdef _trainbox trainbox
"""


def _zsh_case(verb: Verb) -> str:
    specs = [_quoted(spec) for flag in verb.flags for spec in _zsh_specs(flag)]
    if verb.takes_path:
        specs.append(_quoted("1:script:_trainbox_script"))
    elif verb.words:
        specs.append(_quoted(f"1:word:({' '.join(verb.words)})"))
    specs.append(_quoted("*:file:_files"))
    joined = " \\\n            ".join(specs)
    return f"    {verb.name})\n        _arguments \\\n            {joined}\n        ;;"


def _zsh_specs(flag: Flag) -> Iterator[str]:
    about = re.sub(r"([\[\]:])", r"\\\1", flag.help)
    value = ""
    if flag.choices:
        value = f":value:({' '.join(flag.choices)})"
    elif flag.takes_value:
        value = ":value:_files"
    yield from (f"*{word}[{about}]{value}" for word in flag.words)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ---- fish ----


def for_fish(verbs: Sequence[Verb]) -> str:
    """To be sourced, or to be `~/.config/fish/completions/trainbox.fish`."""
    lines = ["# Completes the words of trainbox in fish: trainbox completion fish | source"]
    first = "__fish_use_subcommand"
    lines += [f"complete -c trainbox -f -n {first} -a {verb.name} -d {_for_fish(verb.help)}" for verb in verbs]
    for verb in verbs:
        seen = f"-n '__fish_seen_subcommand_from {verb.name}'"
        if verb.words:
            files = "" if verb.takes_path else " -f"
            lines.append(f"complete -c trainbox{files} {seen} -a '{' '.join(verb.words)}'")
        for flag in verb.flags:
            names = " ".join(
                f"-l {word.removeprefix('--')}" if word.startswith("--") else f"-s {word[1:]}" for word in flag.words
            )
            value = f" -x -a '{' '.join(flag.choices)}'" if flag.choices else " -r" if flag.takes_value else ""
            lines.append(f"complete -c trainbox {seen} {names}{value} -d {_for_fish(flag.help)}")
    return "\n".join(lines) + "\n"


def _for_fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: Mapping[str, Callable[[Sequence[Verb]], str]] = {"bash": for_bash, "zsh": for_zsh, "fish": for_fish}
