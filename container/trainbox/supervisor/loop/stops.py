"""Pure: which processes of a program get SIGTERM at a stop, from a snapshot of their tree.

A signal for all of them at once would end what a program needs to save: its data loaders, the `tee` behind it. One for
the first alone would end a shell and leave the program that it started none the wiser.
"""

from collections.abc import Mapping

import msgspec


class Member(msgspec.Struct, frozen=True):
    """One process of the tree."""

    parent: int
    #: When it started, in ticks.
    born: int = 0
    #: Whether it has a handler for the signal with which it could save something.
    catches: bool = False
    #: Whether it runs a script of commands: what it catches it handles only once the command at hand has ended, and
    #: when that command ends it goes on to the next.
    is_shell: bool = False
    #: Whether it is stopped (SIGSTOP), and handles no signal.
    is_frozen: bool = False


class Hearing(msgspec.Struct, frozen=True):
    """Which processes are signalled at a stop, and when."""

    #: At once and in this order: parents before children, so that a shell starts no next command.
    first: tuple[int, ...] = ()
    #: Of those, and without the started process itself, who catches it: their ends are awaited, they may be saving.
    awaited: frozenset[int] = frozenset()
    #: Only once none of those who catch it lives; they may have left before, as a `tee` does.
    later: frozenset[int] = frozenset()


def decide(tree: Mapping[int, Member], started: int) -> Hearing:
    """Decide which processes are signalled at a stop.

    The started process does. Where it does not catch the signal, or is a shell, so do the topmost processes below it
    that do, and the shells between. Below a process that catches it none is signalled: that one stops its own. If
    only shells catch it, all are signalled, since the shells wait for the others.

    Args:
        tree: The started process and all below it; not those that have ended.
        started: Its id.
    """
    if started not in tree:
        return Hearing()
    children: dict[int, list[int]] = {}
    for pid in sorted(tree):
        children.setdefault(tree[pid].parent, []).append(pid)
    open_, topmost = _walk(tree, children, started)
    if not topmost:
        first = tuple(open_)
    else:
        between = {pid for below in topmost for pid in _above(tree, below, started) if tree[pid].is_shell}
        first = tuple(pid for pid in open_ if pid == started or pid in topmost or pid in between or _is_trap(tree[pid]))
    return Hearing(
        first=first,
        awaited=frozenset(pid for pid in first if tree[pid].catches and pid != started),
        later=frozenset(open_) - frozenset(first),
    )


def _walk(
    tree: Mapping[int, Member], children: Mapping[int, list[int]], started: int
) -> tuple[list[int], frozenset[int]]:
    """Return all that are not below a program that catches the signal, parents first; and those programs."""
    open_ = [started]
    topmost = set()
    for pid in open_:  # which grows
        if tree[pid].catches and not tree[pid].is_shell:
            topmost.add(pid)
        else:
            open_ += [child for child in children.get(pid, ()) if child != started]
    return open_, frozenset(topmost)


def _is_trap(member: Member) -> bool:
    return member.catches and member.is_shell


def _above(tree: Mapping[int, Member], pid: int, started: int) -> list[int]:
    """Return the ancestors of a process, up to the started one."""
    above = []
    while pid != started:
        pid = tree[pid].parent
        above.append(pid)
    return above
