"""Write the generated tables of docs/ anew, or with --check say which are not what the code says.

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tools import api_reference
from trainbox import errors, metrics
from trainbox.contract import params
from trainbox.contract.hosting import HOSTING_VARIABLES
from trainbox.contract.settings import SETTINGS, VARIABLES
from trainbox.health import checks
from trainbox.local.scripts.script_module import find_params, load_script
from trainbox.supervisor.program.choice import bundled_scripts
from trainbox.system import network

DOCS = Path(__file__).parents[1] / "docs"
_BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def exit_codes() -> str:
    """Every class of the error tree."""
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.TrainboxError)]
    rows = [
        (f"{cls.exit_code}", f"`{cls.__name__}`", cls.fault, str(cls.__doc__))
        for cls in sorted(classes, key=lambda cls: cls.exit_code)
        if cls is not errors.TrainboxError
    ]
    defect = (f"{errors.INTERNAL_EXIT_CODE}", "", "AlgorithmError", "A defect of trainbox: the log has its traceback.")
    return table(("code", "error", "as SageMaker words it", "when"), [*rows, defect])


def settings() -> str:
    """Every setting that the contract's reader knows."""
    return table(("hyperparameter", "what it does"), [(f"`{name}`", text) for name, text in SETTINGS.items()])


def hosting_variables() -> str:
    """Every variable that `serve` reads."""
    return table(("variable", "what it says"), [(f"`{name}`", text) for name, text in HOSTING_VARIABLES.items()])


def variables() -> str:
    """Every other variable that begins as trainbox's own do."""
    return table(("variable", "what it says"), [(f"`{name}`", text) for name, text in VARIABLES.items()])


def scripts() -> str:
    """The hyperparameters of every bundled script."""
    parts = []
    for name, path in bundled_scripts().items():
        fields = params.fields(find_params(load_script(path)))
        defaults = ["required" if field.required else field.default for field in fields]
        rows = [
            (f"`{field.name}`", field.type, default, field.range, field.description)
            for field, default in zip(fields, defaults, strict=True)
        ]
        parts.append(f"### {name}\n\n" + table(("name", "type", "default", "range", "what it does"), rows))
    return "\n".join(parts)


def metric_line() -> str:
    """The format, by its own formatter, and a regex made for it."""
    auc, loss = metrics.Metric("validation:auc", "maximize"), metrics.Metric("train:loss", "minimize")
    lines = [metrics.line(5, {loss: 0.25, auc: 0.84081}), metrics.final_line({auc: 0.8512})]
    return "```text\n" + "\n".join(lines) + f"\n```\n\nThe regex of `validation:auc`:\n\n```text\n{auc.regex}\n```\n"


def health_checks() -> str:
    """Every check of the table."""
    rows = [(f"`{name}`", about, limit, kind, effect) for name, about, limit, kind, effect in checks.check_rows()]
    return table(("check", "looks at", "passes", "class", "else it"), rows)


def health_follows() -> str:
    """What each class leads to."""
    return table(("class", "exit code", "what follows"), checks.WHAT_FOLLOWS)


def network_hints() -> str:
    """What is looked at where NCCL or gloo have failed."""
    rows = [(rule.when, rule.advice, ", ".join(rule.backends)) for rule in network.RULES]
    return table(("where there is", "hint", "with"), rows)


def health_sagemaker() -> str:
    """What SageMaker does by itself, as `trainbox health --explain` prints it."""
    return f"```text\n{checks.SAGEMAKER}```\n"


GENERATORS: dict[str, Callable[[], str]] = {
    "api": api_reference.render,
    "exit codes": exit_codes,
    "health checks": health_checks,
    "health follows": health_follows,
    "health sagemaker": health_sagemaker,
    "hosting variables": hosting_variables,
    "metric line": metric_line,
    "network hints": network_hints,
    "scripts": scripts,
    "settings": settings,
    "variables": variables,
}


def generate(text: str) -> str:
    """A page with every generated block written anew."""
    return _BLOCK.sub(lambda block: block[1] + GENERATORS[block["name"]]() + block[3], text)


def main() -> int:
    """Write the pages that differ, or with --check name them.

    Returns:
        1 where --check found a page that differs.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not up to date")
    args = parser.parse_args()
    stale = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        new = generate(text)
        if new != text:
            stale.append(page.name)
            if not args.check:
                page.write_text(new, encoding="utf-8")
    for name in stale:
        print(f"docs/{name}: " + ("is not what the code says; run `make docs`" if args.check else "written anew"))
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
