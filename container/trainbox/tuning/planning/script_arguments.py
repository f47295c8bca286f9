"""Pure: the arguments that a script declares by argparse, read from its source."""

import ast


def find_argparse_flags(tree: ast.Module) -> frozenset[str] | None:
    """Return the flags of a script's argument parser; None where its source does not tell all of them.

    Args:
        tree: The script.
    """
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    methods = {node.func.attr for node in calls if isinstance(node.func, ast.Attribute)}
    # A script that parses known arguments, or lets others declare some, takes more than is seen here.
    if "parse_args" not in methods or methods & {"parse_known_args", "parse_known_intermixed_args", "add_subparsers"}:
        return None
    if _is_shared(tree, calls):
        return None
    flags: set[str] = set()
    for node in calls:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            words = [word.value if isinstance(word, ast.Constant) else None for word in node.args]
            if not words or not all(isinstance(word, str) for word in words):
                return None
            flags.update(word for word in words if isinstance(word, str) and word.startswith("-"))
    return frozenset(flags) or None


def _is_shared(tree: ast.Module, calls: list[ast.Call]) -> bool:
    """Return whether a parser has parents, or is an argument of another function, which may add to it."""
    parsers = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _makes_parser(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    given = (value for call in calls for value in (*call.args, *(each.value for each in call.keywords)))
    handed = {value.id for value in given if isinstance(value, ast.Name)}
    has_parents = any(_makes_parser(call) and any(each.arg == "parents" for each in call.keywords) for call in calls)
    return has_parents or bool(parsers & handed)


def _makes_parser(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name == "ArgumentParser"


def flag_of(name: str) -> str:
    """Return the flag by which a hyperparameter reaches a script, as sagemaker-training passes it."""
    return f"--{name}" if len(name) > 1 else f"-{name}"


def takes(flags: frozenset[str], name: str) -> bool:
    """Return whether a parser takes a hyperparameter; argparse takes the beginning of a flag for it."""
    wanted = flag_of(name)
    if wanted in flags:
        return True
    return len(name) > 1 and len([flag for flag in flags if flag.startswith(wanted)]) == 1
