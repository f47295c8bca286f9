"""Who of a program's processes hears of a stop: the decision alone, over trees that are made up."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from trainbox.supervisor.loop.stops import Hearing, Member, decide


def tree(**processes: str) -> dict[int, Member]:
    """Processes `p1="0"`, `p2="1 catches shell"`: number, parent, and what they are."""
    found = {}
    for name, text in processes.items():
        parent, *words = text.split()
        found[int(name[1:])] = Member(int(parent), catches="catches" in words, is_shell="shell" in words)
    return found


def hearing(*first: int, awaited: tuple[int, ...] = (), later: tuple[int, ...] = ()) -> Hearing:
    return Hearing(first, frozenset(awaited), frozenset(later))


def test_below_a_program_that_catches_the_signal_nobody_hears_of_it() -> None:
    assert decide(tree(p1="0 catches", p2="1", p3="1 catches", p4="3 catches"), 1) == hearing(1)


def test_the_program_that_a_shell_started_hears_and_is_awaited() -> None:
    assert decide(tree(p1="0 shell", p2="1 catches", p3="2"), 1) == hearing(1, 2, awaited=(2,))


def test_the_program_below_a_wrapper_hears_and_is_awaited() -> None:
    assert decide(tree(p1="0", p2="1 catches", p3="2"), 1) == hearing(1, 2, awaited=(2,))


def test_who_does_not_catch_it_is_left_alone_beside_one_that_does() -> None:
    assert decide(tree(p1="0 shell", p2="1 catches", p3="1"), 1) == hearing(1, 2, awaited=(2,), later=(3,))


def test_all_hear_where_nobody_catches_it() -> None:
    assert decide(tree(p1="0 shell", p2="1", p3="2", p4="1"), 1) == hearing(1, 2, 4, 3)


def test_a_trap_of_a_shell_waits_for_the_command_at_hand_so_that_hears_too() -> None:
    assert decide(tree(p1="0 shell catches", p2="1"), 1) == hearing(1, 2)
    assert decide(tree(p1="0", p2="1 shell catches", p3="2"), 1) == hearing(1, 2, 3, awaited=(2,))


def test_a_shell_between_hears_before_the_program_below_it_and_starts_no_next_command() -> None:
    assert decide(tree(p1="0 shell", p2="1 shell", p3="2 catches"), 1) == hearing(1, 2, 3, awaited=(3,))


def test_a_wrapper_between_is_left_alone_and_may_pass_on_how_its_program_ended() -> None:
    assert decide(tree(p1="0 shell", p2="1", p3="2 catches"), 1) == hearing(1, 3, awaited=(3,), later=(2,))


def test_several_programs_of_one_shell_all_hear() -> None:
    found = decide(tree(p1="0 shell", p2="1 catches", p3="1 catches", p4="1 shell", p5="4 catches"), 1)
    assert found == hearing(1, 2, 3, 4, 5, awaited=(2, 3, 5))


def test_of_a_process_that_has_ended_nobody_hears() -> None:
    assert decide({}, 1) == hearing()


@st.composite
def trees(draw: st.DrawFn) -> dict[int, Member]:
    """Process 1 and up to eleven below it, with numbers in no order of age."""
    count = draw(st.integers(0, 11))
    numbers = [1, *draw(st.permutations(range(2, count + 2)))]
    return {
        pid: Member(
            parent=numbers[draw(st.integers(0, place - 1))] if place else 0,
            catches=draw(st.booleans()),
            is_shell=draw(st.booleans()),
        )
        for place, pid in enumerate(numbers)
    }


def above(members: Mapping[int, Member], pid: int) -> list[int]:
    found = []
    while pid := members[pid].parent:
        found.append(pid)
    return found


def shields(member: Member) -> bool:
    return member.catches and not member.is_shell


@given(trees())
def test_the_rules_hold_for_every_tree(members: dict[int, Member]) -> None:
    found = decide(members, 1)
    shielded = {pid for pid in members if any(shields(members[one]) for one in above(members, pid))}
    anybody = any(shields(member) for member in members.values())
    assert found.first[0] == 1
    assert len(set(found.first)) == len(found.first)
    # Everybody who is not below a program that catches it hears, at once or later, and nobody else.
    assert set(found.first).isdisjoint(found.later)
    assert set(found.first) | found.later == set(members) - shielded
    assert all(members[pid].catches for pid in found.awaited)
    for pid in set(members) - shielded:
        if members[pid].catches:
            assert pid in found.first
    if not anybody:
        assert not found.later
    for place, pid in enumerate(found.first):
        earlier = found.first[:place]
        assert all(one in earlier for one in above(members, pid) if one in found.first)
