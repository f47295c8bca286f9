"""The place of a process comes from what its launcher sets, however much that is; what cannot be is named."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.contract.cluster.ranks import RANK_VARIABLES, Ranks, read_ranks
from trainbox.errors import ContractError

PLACES = st.tuples(*[st.integers(1, 4)] * 2).flatmap(
    lambda size: st.tuples(st.just(size[0]), st.just(size[1]), st.integers(0, size[0] - 1), st.integers(0, size[1] - 1))
)
TEXTS = st.one_of(st.integers(-3, 12).map(str), st.text(max_size=3), st.sampled_from(["1.0", "²", "٣", "9" * 5000]))


def is_whole(ranks: Ranks) -> bool:
    return 0 <= ranks.rank < ranks.world_size and 0 <= ranks.local_rank < ranks.local_world_size <= ranks.world_size


def test_one_process_on_each_host_where_nothing_is_said() -> None:
    assert read_ranks({"PATH": "/bin"}) == Ranks(0, 1, 0, 1)
    assert read_ranks(dict.fromkeys(RANK_VARIABLES, ""), hosts=3, host_rank=2) == Ranks(2, 3, 0, 1)


@given(PLACES)
def test_what_is_said_in_full_is_taken_whatever_the_hosts_of_the_job(place: tuple[int, int, int, int]) -> None:
    hosts, processes, host, local = place
    expected = Ranks(host * processes + local, hosts * processes, local, processes)
    values = (expected.rank, expected.world_size, expected.local_rank, expected.local_world_size)
    assert read_ranks(dict(zip(RANK_VARIABLES, map(str, values), strict=True))) == expected


@given(PLACES, st.sets(st.sampled_from(RANK_VARIABLES)))
def test_what_is_said_in_part_is_kept_and_the_rest_fits(place: tuple[int, int, int, int], names: set[str]) -> None:
    hosts, processes, host, local = place
    values = (host * processes + local, hosts * processes, local, processes)
    env = {name: str(value) for name, value in zip(RANK_VARIABLES, values, strict=True) if name in names}
    ranks = read_ranks(env, hosts=hosts, host_rank=host)
    assert is_whole(ranks)
    found = (ranks.rank, ranks.world_size, ranks.local_rank, ranks.local_world_size)
    assert {name: str(value) for name, value in zip(RANK_VARIABLES, found, strict=True) if name in names} == env
    # These are enough to know all: DeepSpeed and Accelerate set them.
    if {"RANK", "WORLD_SIZE"} <= names:
        assert found == values


@given(st.dictionaries(st.sampled_from(RANK_VARIABLES), TEXTS), st.integers(1, 3))
def test_whatever_is_said_gives_a_place_that_can_be_or_an_error_that_names_it(
    env: Mapping[str, str], hosts: int
) -> None:
    try:
        ranks = read_ranks(env, hosts=hosts, host_rank=hosts - 1)
    except ContractError as refused:
        error = refused
    else:
        assert is_whole(ranks)
        return
    assert any(name in error.message for name in env)
    assert error.hint or "expected a whole number" in error.message


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "contradicting variables on host 1 of 1: RANK is 2, WORLD_SIZE is 2"),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK is 2, LOCAL_WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "3"}, "WORLD_SIZE is 2, LOCAL_WORLD_SIZE is 3"),
        ({"WORLD_SIZE": "0"}, "the variable WORLD_SIZE: found '0', expected a whole number, 1 or more"),
        ({"LOCAL_RANK": "-1"}, "the variable LOCAL_RANK: found '-1', expected a whole number, 0 or more"),
        ({"RANK": "first"}, "the variable RANK: found 'first', expected a whole number, 0 or more"),
    ],
)
def test_what_cannot_be_is_named(env: Mapping[str, str], message: str) -> None:
    with pytest.raises(ContractError) as raised:
        read_ranks(env)
    assert message in raised.value.message
