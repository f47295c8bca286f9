"""What `trainbox run` is to run: a file or a module of this machine, a bundled script, or one that an image has."""

import difflib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from trainbox.contract.job_spec import FILE_SCHEME, LocalScript
from trainbox.contract.text import did_you_mean
from trainbox.errors import RunError
from trainbox.local.backends.engine import has_file, list_scripts
from trainbox.local.backends.namespace import OPT_ML
from trainbox.supervisor.program.choice import bundled_scripts, find_module, same_script


class FoundProgram(msgspec.Struct, frozen=True):
    """What is to run."""

    #: The program relative to its directory, the name of a bundled script, or the path that it has in the image.
    script: str
    #: The directory of its source; a bundled script has none.
    directory: Path | None = None
    #: Whether it is a script of the image, which is none here.
    in_image: bool = False
    #: Where the supervisor gets the source from, where it is not that directory.
    submit_directory: str = ""


def find_program(script: LocalScript | None, image: str | None, env: Mapping[str, str], cwd: Path) -> FoundProgram:
    """Look up the script or the module of a job; an image is asked only for a name that is none here.

    Args:
        script: What is to run.
        image: The image of the containers; None where there are none.
        env: The environment, which says where the engine is.
        cwd: Where paths begin.

    Raises:
        RunError: It is nowhere; the message names what is like it.
    """
    if script is None or not (script.file or script.module or script.name):
        raise nothing_named(image, cwd)
    if script.source_dir and not script.source_dir.startswith(FILE_SCHEME):
        return _find_elsewhere(script, image, env)
    directory = Path(script.source_dir.removeprefix(FILE_SCHEME)) if script.source_dir else None
    if directory is not None and directory.is_file():  # an archive, which the supervisor unpacks
        if image is not None:
            raise RunError(f"the containers cannot read the archive {directory}", hint="unpack it, give the directory")
        return FoundProgram(script.file or script.module, submit_directory=script.source_dir)
    if directory is not None and not directory.is_dir():
        raise RunError(
            f"there is no directory {directory}, where the source is to be", hint="give the right source_dir"
        )
    if script.module:
        return _find_module(script.module, directory or cwd, image)
    if script.file:
        located = locate(script.file, directory, cwd)
        if located is None:
            raise no_script(script.file, directory or cwd, [])
        return FoundProgram(*located)
    return _find_by_name(script.name, image, env, cwd)


def locate(given: str, directory: Path | None, cwd: Path) -> tuple[str, Path] | None:
    """A file of this machine, relative to the directory of its source, and that; None where there is none.

    Args:
        given: Its path.
        directory: That of the source; None for the file's own.
        cwd: Where paths begin.
    """
    candidates = [cwd / given] if directory is None else [directory / given, cwd / given]
    source = (cwd / given).resolve().parent if directory is None else directory.resolve()
    for candidate in candidates:
        if candidate.is_file() and candidate.resolve().is_relative_to(source):
            return candidate.resolve().relative_to(source).as_posix(), source
    return None


def nothing_named(image: str | None, cwd: Path) -> RunError:
    """What is said where no script is named; that of a command may stand in the place of its image."""
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


def _find_elsewhere(script: LocalScript, image: str | None, env: Mapping[str, str]) -> FoundProgram:
    """A program of a directory that only the image has, or of an archive that the supervisor fetches."""
    if image is not None and script.file and script.source_dir.startswith("/"):
        return _find_path_in_image(Path(script.source_dir, script.file), image, env)
    return FoundProgram(script.file or script.module, submit_directory=script.source_dir)


def _find_module(name: str, given: Path, image: str | None) -> FoundProgram:
    """As Python does it the current directory is where names of modules begin: it is the source."""
    directory = given.resolve()
    if not all(part.isidentifier() for part in name.split(".")):
        raise RunError(f"-m {name}: expected the name of a module, as in package.train", hint="a script needs no -m")
    file = find_module(name, directory)
    if file is not None:
        return FoundProgram(file.relative_to(directory).as_posix(), directory)
    if image is None and importlib.util.find_spec(name.partition(".")[0]) is None:
        there = [path.stem for path in directory.iterdir() if path.suffix == ".py" or path.is_dir()]
        raise RunError(
            f"there is no module {name!r} in {directory}{did_you_mean(name.partition('.')[0], there)}",
            hint="--source-dir names the directory where packages lie; an installed module works, too",
        )
    return FoundProgram(name, directory)


def _find_by_name(given: str, image: str | None, env: Mapping[str, str], cwd: Path) -> FoundProgram:
    """A bundled script, or one that the image has; neither has a source here."""
    if "/" in given:
        raise no_script(given, (cwd / given).resolve().parent, [])
    here = bundled_scripts()
    if (bundled := same_script(given, here)) is not None:
        return FoundProgram(bundled)
    if image is None:
        raise no_script(given, cwd, here)
    return _find_in_image(given, image, env, cwd)


def _find_path_in_image(path: Path, image: str, env: Mapping[str, str]) -> FoundProgram:
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
    return FoundProgram(str(path), in_image=True)


def _find_in_image(given: str, image: str, env: Mapping[str, str], cwd: Path) -> FoundProgram:
    scripts = list_scripts(image, env)
    if scripts is None:
        raise RunError(
            f"there is no script {given!r} in {cwd}, and the image {image} says of none that it has",
            hint="give the path of a file; an image has scripts by a name where 'python3' there imports trainbox",
        )
    if (name := same_script(given, scripts)) is not None:
        return FoundProgram(name, in_image=True)
    raise no_script(given, cwd, scripts, image=image)


def no_script(given: str, directory: Path, bundled: Iterable[str], *, image: str = "") -> RunError:
    """What is said of a script that is nowhere, with those that are like it."""
    names: Sequence[str] = sorted(bundled)
    there = [path.name for path in directory.iterdir() if path.is_file()] if directory.is_dir() else []
    close = difflib.get_close_matches(Path(given).name, [*there, *names], n=3)
    meant = f" - did you mean {' or '.join(map(repr, close))}?" if close else ""
    whose = f"those of {image}" if image else "the bundled scripts"
    choices = f"; {whose} are {', '.join(names)}" if names else ""
    place = f"{directory} or in {image}" if image else str(directory)
    return RunError(f"there is no script {given!r} in {place}{meant}", hint=f"give the path of a file{choices}")
