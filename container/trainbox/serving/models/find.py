"""Find the model to serve, and load it: one of ours by its card, a foreign one that is alone, or the user's own module.

`list_model` looks at the files, `find_model` decides from that list alone, `load` imports the one framework it needs.
Links are not followed: what a `model.tar.gz` brings may be somebody else's.
"""

import itertools
import re
import stat
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec

from trainbox import files
from trainbox.contract.hosting import Hosting, Predictor
from trainbox.contract.job import add_to_environment, default_in_environment
from trainbox.contract.model_card import CARD_FILE, Framework, ModelCard, read_card
from trainbox.contract.model_file import unreadable
from trainbox.errors import DataError, ProgramError
from trainbox.log_lines import emit
from trainbox.serving.hooks.user_module import HOOKS, Module, check_hooks, find_module, module_places
from trainbox.serving.models.model_files import Form, form_of

_OLD_CARD = "model.json"
#: SDK v2 unpacks it beside itself.
_ARCHIVE = "model.tar.gz"
_MOST_FILES, _MOST_SHOWN = 10_000, 20
_FOLD = re.compile(r"(xgboost-model)-(\d+)")

_FRAMEWORKS: dict[Form, Framework] = {
    "xgboost": "xgboost",
    "booster-pickle": "xgboost",
    "skops": "scikit-learn",
    "pickle": "scikit-learn",
    "torch-export": "pytorch",
    "torchscript": "pytorch",
    "onnx": "onnx",
}
#: Forms whose loading runs code of their author.
CODE: tuple[Form, ...] = ("booster-pickle", "pickle", "torchscript")
#: The forms of one model, the safest first: training writes both.
_ALIKE: tuple[Form, ...] = ("skops", "torch-export", "onnx", "pickle", "torchscript")


class ModelFile(msgspec.Struct, frozen=True):
    """A file directly in the model's directory."""

    name: str
    form: Form


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in the model's directory, and where the user's code may be."""

    files: tuple[ModelFile, ...] = ()
    #: Files further down, and links, which are not followed: for messages.
    others: tuple[str, ...] = ()
    card: ModelCard | None = None
    #: Where a module was looked for, in this order; those that are there come with their hooks.
    places: tuple[Path, ...] = ()
    module: Module | None = None


class FoundModel(msgspec.Struct, frozen=True, kw_only=True):
    """The model to serve."""

    model_dir: Path
    #: None where `model_fn` of the user loads the model.
    framework: Framework | None = None
    form: Form | None = None
    #: Below `model_dir`; several are those of folds.
    files: tuple[str, ...] = ()
    card: ModelCard | None = None
    module: Module | None = None
    use_ensemble: bool = True
    #: Whether a pickle may be read.
    may_run_code: bool = True
    #: What to tell whoever reads the log, a line each.
    notes: tuple[str, ...] = ()


# ---- look ----


def list_model(hosting: Hosting) -> Listing:
    """List the model's files, read its card, and look for the user's module.

    Raises:
        DataError: There is no such directory, or it, its card or a file of it cannot be read.
        ProgramError: The user's module cannot be read.
    """
    model_dir = hosting.model_dir
    try:
        found = sorted(itertools.islice(files.walk_below(model_dir), _MOST_FILES))
    except OSError as error:
        raise unreadable(Path(error.filename or model_dir), error) from error
    regular = [path for path, status in found if stat.S_ISREG(status.st_mode)]
    direct = [path for path in regular if path.parent == model_dir and not _is_ignored(path.name)]
    card = _read_card(model_dir, direct, regular)
    listed = [ModelFile(path.name, form_of(path)) for path in direct if card is None or path.name != _OLD_CARD]
    links = [f"{path.relative_to(model_dir)} (a link)" for path, status in found if stat.S_ISLNK(status.st_mode)]
    parents = {path.parent for path, _ in found}
    links += [
        f"{path.relative_to(model_dir)} (an empty directory)"
        for path, status in found
        if stat.S_ISDIR(status.st_mode) and path not in parents
    ]
    below = [str(path.relative_to(model_dir)) for path in regular if path.parent != model_dir]
    places = tuple(module_places(hosting))
    return Listing(
        files=tuple(listed),
        others=(*below, *links),
        card=card,
        places=places,
        module=find_module(places),
    )


def _is_ignored(name: str) -> bool:
    return name == _ARCHIVE or name.startswith(".")


def _read_card(model_dir: Path, direct: Sequence[Path], regular: Sequence[Path]) -> ModelCard | None:
    """Return the card; a `model.json` may also be a model of XGBoost, or anything."""
    if model_dir / CARD_FILE in regular:
        return read_card(model_dir)
    old = model_dir / _OLD_CARD
    if old not in direct or form_of(old) == "xgboost":
        return None
    try:
        return read_card(model_dir)
    except DataError:
        return None


# ---- decide ----


def find_model(hosting: Hosting, listing: Listing) -> FoundModel:
    """Decide which model is served: the user's module first, then the card, then a foreign model that is alone.

    Args:
        hosting: What SageMaker says.
        listing: What there is.

    Raises:
        ProgramError: The user's module is not there, cannot be used, or may not run.
        DataError: There is no model, or there are several; all that was found is listed.
    """
    _check_module(hosting, listing)
    module = listing.module if listing.module and listing.module.hooks else None
    notes = []
    if module is not None:
        notes.append(f"the model brings code, which runs with all rights of the container: {module.path}")
    elif listing.module is not None:
        notes.append(f"{listing.module.path} has none of {', '.join(HOOKS[:5])}: it is not used")
    elif hosting.program:
        notes.append(f"there is no {hosting.program}, which SDK v3 names in any case: the model answers without hooks")
    if module is not None and "model_fn" in module.hooks:
        return FoundModel(model_dir=hosting.model_dir, card=listing.card, module=module, notes=tuple(notes))
    form, names = _choose_files(hosting, listing)
    if form in CODE:
        runs = "what it is made of is read, nothing runs" if form == "booster-pickle" else "loading it runs its code"
        notes.append(f"{names[0]} is {_CODE_FORMS[form]}: {runs}")
        if hosting.code == "never":
            raise DataError(
                f"{hosting.model_dir / names[0]} is {_CODE_FORMS[form]}, and TRAINBOX_SERVE_CODE is never",
                hint="save the model as skops, as UBJSON or with torch.export; or allow its code",
            )
    return FoundModel(
        model_dir=hosting.model_dir,
        framework=_FRAMEWORKS[form],
        form=form,
        files=names,
        card=listing.card,
        module=module,
        use_ensemble=hosting.use_ensemble,
        may_run_code=hosting.code == "allow",
        notes=tuple(notes),
    )


_CODE_FORMS: dict[Form, str] = {
    "booster-pickle": "a pickle",
    "pickle": "a pickle",
    "torchscript": "a TorchScript program",
}


def _check_module(hosting: Hosting, listing: Listing) -> None:
    if hosting.program and listing.module is None and not hosting.may_lack_program:
        looked = ", ".join(str(place) for place in listing.places)
        raise ProgramError(
            f"SAGEMAKER_PROGRAM={hosting.program} is not there; looked for {looked}",
            hint=f"the model's directory holds {_listed(listing)}; put the file into code/ of model.tar.gz",
        )
    if listing.module is None or not listing.module.hooks:
        return
    path, hooks = listing.module.path, listing.module.hooks
    if hosting.code == "never":
        raise ProgramError(
            f"the model brings code ({path}), and TRAINBOX_SERVE_CODE is never",
            hint="leave the code out of model.tar.gz, or allow it",
        )
    if listing.module.is_certain:
        check_hooks(path, hooks)


def _choose_files(hosting: Hosting, listing: Listing) -> tuple[Form, tuple[str, ...]]:
    """Return the files of the one model that there is, and their form."""
    card = listing.card
    models = [model for model in _group(listing.files) if card is None or _FRAMEWORKS[model[0]] == card.framework]
    if card is not None and card.files:
        models = [(form, names) for form, names in models if {*names} <= {*card.files}]
    if len(models) == 1:
        return models[0]
    if models and {names[0].rpartition(".")[0] for _, names in models} == {"model"}:
        # As training writes them: two forms of the same.
        return min(models, key=lambda model: _ALIKE.index(model[0]))
    what = f"its card is one of {card.framework}; " if card else ""
    if not models:
        raise DataError(
            f"{hosting.model_dir} has no model to serve: {what}it holds {_listed(listing)}",
            hint="a model of trainbox has trainbox/model.json; others are xgboost-model, *.ubj, *.json, *.bst, *.skops,"
            " *.joblib, *.pkl, *.pt2, *.onnx or TorchScript, alone; anything else needs code/inference.py and model_fn",
        )
    names = ", ".join(each for _, names in models for each in names)
    raise DataError(
        f"{hosting.model_dir} has several models: {what}{names}",
        hint="leave one of them in model.tar.gz, or add code/inference.py with a model_fn that chooses",
    )


def _group(listed: Sequence[ModelFile]) -> list[tuple[Form, tuple[str, ...]]]:
    """Return the models among the files; those of the folds of one training are one."""
    folds = sorted((int(match[2]), file) for file in listed if (match := _FOLD.fullmatch(file.name)))
    models: list[tuple[Form, tuple[str, ...]]] = [
        (file.form, (file.name,)) for file in listed if file.form in _FRAMEWORKS and not _FOLD.fullmatch(file.name)
    ]
    if folds:
        models.append((folds[0][1].form, tuple(file.name for _, file in folds)))
    return models


def _listed(listing: Listing) -> str:
    names = [*(file.name for file in listing.files), *listing.others]
    rest = len(names) - _MOST_SHOWN
    return ", ".join(names[:_MOST_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "") if names else "nothing"


# ---- act ----


def load(found: FoundModel) -> Predictor:
    """Load the model with the one framework that it needs.

    Args:
        found: A model that is not the user's `model_fn`'s.

    Raises:
        DataError: It cannot be loaded.
    """
    # Before any library that starts a team of OpenMP: a process that has one cannot be forked (docs of libgomp's hang:
    # dmlc/xgboost#8040). `Predictor.set_threads` is for the processes that were forked.
    add_to_environment({"OMP_NUM_THREADS": "1"})
    for note in found.notes:
        emit(note)
    if found.framework == "xgboost":
        default_in_environment("OMP_WAIT_POLICY", "passive")  # as in training: see `trainbox.xgboost.entry.load`
        from trainbox.xgboost import predictor as of_xgboost  # noqa: PLC0415 - only who serves XGBoost needs it

        return of_xgboost.load_predictor(
            found.model_dir,
            found.files,
            found.card,
            use_ensemble=found.use_ensemble,
        )
    if found.framework == "scikit-learn":
        if found.may_run_code:
            add_code(found.model_dir)
        from trainbox.sklearn import entry as sklearn_entry  # noqa: PLC0415 - likewise

        sklearn_entry.load("trainbox.sklearn.predictor")
        from trainbox.sklearn import predictor as of_sklearn  # noqa: PLC0415 - likewise

        return of_sklearn.load_predictor(
            found.model_dir,
            found.files[0],
            found.card,
            is_pickle=found.form == "pickle",
            may_run_code=found.may_run_code,
        )
    if found.framework == "pytorch":
        from trainbox.torch import predictor as of_torch  # noqa: PLC0415 - likewise

        return of_torch.load_predictor(
            found.model_dir,
            found.files[0],
            found.card,
            is_script=found.form == "torchscript",
            may_run_code=found.may_run_code,
        )
    if found.framework == "onnx":
        if find_spec("onnxruntime") is None:
            raise DataError(
                f"{found.model_dir / found.files[0]} needs onnxruntime, which is not installed",
                hint="install it in an image on top of this one",
            )
        from trainbox.serving.models import onnx  # noqa: PLC0415 - likewise

        return onnx.load_predictor(found.model_dir, found.files[0])
    raise DataError(f"{found.model_dir}: the user's model_fn loads this model")


def add_code(model_dir: Path) -> None:
    """Make the modules in `code/` of a model importable: a pickle may need a class of the user.

    Args:
        model_dir: The model's directory.
    """
    for directory in (model_dir / "code" / "lib", model_dir / "code"):
        if directory.is_dir() and str(directory) not in sys.path:
            sys.path.insert(0, str(directory))
