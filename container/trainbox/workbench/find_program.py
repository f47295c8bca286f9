"""What `trainbox run` is to run: a file or a module of this machine, a bundled script, or one that an image has."""

import argparse
import difflib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from trainbox.contract.text import did_you_mean
from trainbox.errors import RunError
from trainbox.launch.program import bundled_scripts, find_module, same_script
from trainbox.workbench.engine import has_file, list_scripts
from trainbox.workbench.namespace import OPT_ML


class Found(msgspec.Struct, frozen=True):
    """What is to run."""

    #: The program relative to its directory, the name of a bundled script, or the path that it has in the image.
    script: str
    #: The directory of its source; a bundled script has none.
    directory: Path | None = None
    #: Whether it is a script of the image, which is none here.
    in_image: bool = False


def find_program(args: argparse.Namespace, env: Mapping[str, str], cwd: Path) -> Found:
    """Look up the script or the module of a command line; an image is asked only for a name that is none here.

    Args:
        args: The command line.
        env: The environment, which says where the engine is.
        cwd: Where paths begin.

    Raises:
        RunError: It is nowhere; the message names what is like it.
    """
    if args.script is not None and args.module is not None:
        raise RunError(
            f"-m {args.module} and {args.script}: only one of them can run",
            hint=f"arguments of the module stand behind --: trainbox run -m {args.module} -- {args.script}",
        )
    if args.module is not None:
        return _find_module(args, cwd)
    if args.script is None:
        raise _nothing_named(args.docker, cwd)
    return _find_script(args.script, args, env, cwd)


def _nothing_named(image: str | None, cwd: Path) -> RunError:
    if image is None:
        return RunError("no script is named", hint="trainbox run SCRIPT_OR_NAME, or trainbox run -m MODULE")
    way = f"{image} --docker" if names_script(image, cwd) else f"SCRIPT_OR_NAME --docker {image}"
    return RunError(
        f"--docker {image}: {image!r} was taken for the name of an image, and no script is named",
        hint=f"write the script before --docker: trainbox run {way}",
    )


def names_script(text: str, cwd: Path) -> bool:
    """Whether what was given as an image is rather a script: a file here, a name with its ending, a bundled one."""
    return text.endswith((".py", ".sh")) or (cwd / text).is_file() or same_script(text, bundled_scripts()) is not None


def _find_module(args: argparse.Namespace, cwd: Path) -> Found:
    """As Python does it the current directory is where names of modules begin: it is the source."""
    directory = (cwd / (args.source_dir or ".")).resolve()
    if not directory.is_dir():
        raise RunError(f"--source-dir {args.source_dir}: there is no such directory")
    name = str(args.module)
    if not all(part.isidentifier() for part in name.split(".")):
        raise RunError(f"-m {name}: expected the name of a module, as in package.train", hint="a script needs no -m")
    file = find_module(name, directory)
    if file is not None:
        return Found(file.relative_to(directory).as_posix(), directory)
    if args.docker is None and importlib.util.find_spec(name.partition(".")[0]) is None:
        there = [path.stem for path in directory.iterdir() if path.suffix == ".py" or path.is_dir()]
        raise RunError(
            f"there is no module {name!r} in {directory}{did_you_mean(name.partition('.')[0], there)}",
            hint="--source-dir names the directory where packages lie; an installed module works, too",
        )
    return Found(name, directory)


def _find_script(given: str, args: argparse.Namespace, env: Mapping[str, str], cwd: Path) -> Found:
    """The program relative to its source directory; or a bundled script, which has none."""
    if args.source_dir is not None:
        directory = (cwd / args.source_dir).resolve()
        if not directory.is_dir():
            raise RunError(f"--source-dir {args.source_dir}: there is no such directory")
        candidates = [directory / given, cwd / given]
    else:
        directory = (cwd / given).resolve().parent
        candidates = [cwd / given]
    for candidate in candidates:
        if candidate.is_file() and candidate.resolve().is_relative_to(directory):
            return Found(candidate.resolve().relative_to(directory).as_posix(), directory)
    if args.source_dir is None and args.docker is not None and Path(given).is_absolute():
        return _find_path_in_image(Path(given), args.docker, env)
    if args.source_dir is not None or "/" in given:
        raise _no_script(given, directory, [])
    here = bundled_scripts()
    if (bundled := same_script(given, here)) is not None:
        return Found(bundled)
    if args.docker is None:
        raise _no_script(given, cwd, here)
    return _find_in_image(given, args.docker, env, cwd)


def _find_path_in_image(path: Path, image: str, env: Mapping[str, str]) -> Found:
    if path.is_relative_to(OPT_ML):
        raise RunError(
            f"there is no script {path} here, and that of the image would be hidden by the job's own {OPT_ML}",
            hint="put it elsewhere in the image, as /opt/program, or into /opt/train_scripts to run it by its name",
        )
    if not has_file(image, path, env):
        raise RunError(
            f"there is no script {path} here or in {image}",
            hint=f"'docker run --rm --entrypoint ls {image} {path.parent}' shows what is there",
        )
    return Found(str(path), in_image=True)


def _find_in_image(given: str, image: str, env: Mapping[str, str], cwd: Path) -> Found:
    scripts = list_scripts(image, env)
    if scripts is None:
        raise RunError(
            f"there is no script {given!r} in {cwd}, and the image {image} says of none that it has",
            hint="give the path of a file; an image has scripts by a name where 'python3' there imports trainbox",
        )
    if (name := same_script(given, scripts)) is not None:
        return Found(name, in_image=True)
    raise _no_script(given, cwd, scripts, image=image)


def _no_script(given: str, directory: Path, bundled: Iterable[str], *, image: str = "") -> RunError:
    names: Sequence[str] = sorted(bundled)
    there = [path.name for path in directory.iterdir() if path.is_file()] if directory.is_dir() else []
    close = difflib.get_close_matches(Path(given).name, [*there, *names], n=3)
    meant = f" - did you mean {' or '.join(map(repr, close))}?" if close else ""
    whose = f"those of {image}" if image else "the bundled scripts"
    choices = f"; {whose} are {', '.join(names)}" if names else ""
    place = f"{directory} or in {image}" if image else str(directory)
    return RunError(f"there is no script {given!r} in {place}{meant}", hint=f"give the path of a file{choices}")
