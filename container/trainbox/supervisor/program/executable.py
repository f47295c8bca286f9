"""The command of a program that is not Python: the file itself, or the interpreter that its first line names."""

import os
import re
from pathlib import Path

from trainbox.errors import ProgramError

#: Linux reads no more of a script's first line (BINPRM_BUF_SIZE).
_LONGEST_FIRST_LINE = 256


def command_of(path: Path, name: str) -> tuple[str, ...]:
    """Return the command of a program: itself if it can be executed, else its interpreter; a shell if it names none.

    Archives made on other systems lose the permission to execute: it is given, as sagemaker-training does. Where the
    code cannot be changed (a read-only mount, another user's file, a file system mounted `noexec`), the interpreter is
    started with the arguments that the kernel would give it (execve(2), "Interpreter scripts").

    Args:
        path: The file.
        name: Relative to the directory where it is started.

    Raises:
        ProgramError: Nothing can execute it.
    """
    with path.open("rb") as file:
        first = file.readline(_LONGEST_FIRST_LINE)
    if first.startswith(b"#!"):
        interpreter = _read_interpreter(first, name)
        return (f"./{name}",) if _make_executable(path) is None else (*interpreter, f"./{name}")
    if first.startswith(b"\x7fELF"):
        if problem := _make_executable(path):
            raise ProgramError(
                f"the program {path} is not executable and cannot be made so: {problem}", hint=f"chmod +x {path.name}"
            )
        return (f"./{name}",)
    if name.endswith(".sh"):
        return ("/bin/sh", f"./{name}")
    raise ProgramError(
        f"the program {name!r} cannot be executed: it is no Python or shell script, no ELF file, and has no '#!' line",
        hint="begin it with the interpreter, as in '#!/usr/bin/env Rscript'",
    )


def _read_interpreter(first: bytes, name: str) -> tuple[str, ...]:
    """Read the interpreter and its one argument; report a missing interpreter, which the kernel does not name."""
    if first.endswith(b"\r\n"):
        raise ProgramError(
            f"the program {name!r} cannot be executed: its first line ends as Windows ends lines",
            hint=f"sed -i 's/\\r$//' {name}, or `git config core.autocrlf input`",
        )
    words = [os.fsdecode(word) for word in re.split(rb"[ \t]+", first[2:].strip(b" \t\n"), maxsplit=1) if word]
    if words and not Path(words[0]).exists():
        raise ProgramError(
            f"the program {name!r} cannot be executed: its first line asks for {words[0]!r}, which is not there",
            hint="install it in the image, or name another interpreter, as in '#!/usr/bin/env bash'",
        )
    return tuple(words) or ("/bin/sh",)


def _make_executable(path: Path) -> str | None:
    """Let this user execute a file.

    Returns:
        Why that cannot be; None where it can be executed.
    """
    if os.access(path, os.X_OK):
        return None
    try:
        path.chmod(path.stat().st_mode | 0o555)
    except OSError as error:
        return error.strerror
    return None if os.access(path, os.X_OK) else "its file system is mounted noexec"
