"""Who meets whom, and what follows: two rounds for any number of hosts, and no guess."""

from collections.abc import Collection, Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from trainbox.health.collective_bisection import (
    Group,
    GroupResult,
    HostReply,
    StageResult,
    attribute,
    explain_unreachable,
    find_slow_groups,
    find_slow_hosts,
    group_results,
    max_led_groups,
    plan_first_round,
    plan_next,
    plan_second_round,
)
from trainbox.health.collectives import report_collectives
from trainbox.health.probe_protocol import HostGroupResult, ProbeReply, RankResult

counts = st.integers(min_value=1, max_value=70)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"algo-{number + 1}" for number in range(count))


@st.composite
def suspected(draw: st.DrawFn) -> tuple[tuple[str, ...], set[str]]:
    """Hosts, and those of some groups of the first round."""
    hosts = names(draw(counts))
    groups = plan_first_round(hosts)
    bad = draw(st.sets(st.sampled_from(groups))) if groups else set()
    return hosts, {host for group in bad for host in group}


@given(counts)
def test_in_the_first_round_everybody_meets_somebody_once(count: int) -> None:
    groups = plan_first_round(names(count))
    assert sorted(host for group in groups for host in group) == sorted(names(count) if count > 1 else ())
    assert [len(group) for group in groups] == [3 if count % 2 and not place else 2 for place in range(count // 2)]


def test_one_host_meets_nobody() -> None:
    assert plan_first_round(("algo-1",)) == ()
    assert plan_second_round(("algo-1",), set()) == ()


@given(suspected())
def test_every_suspect_meets_a_proven_host_as_the_first_of_a_pair(case: tuple[tuple[str, ...], set[str]]) -> None:
    hosts, suspects = case
    again = plan_second_round(hosts, suspects)
    if len(hosts) == 3:
        assert {frozenset(group) for group in again} == {frozenset(hosts) - {host} for host in hosts}
    elif suspects != set(hosts):
        assert [group[0] for group in again] == [host for host in hosts if host in suspects]
        assert all(group[1] not in suspects for group in again)


@given(suspected())
def test_the_proven_share_the_suspects_evenly(case: tuple[tuple[str, ...], set[str]]) -> None:
    hosts, suspects = case
    proven = [host for host in hosts if host not in suspects]
    if proven and len(hosts) != 3:
        met_by = [sum(group[1] == host for group in plan_second_round(hosts, suspects)) for host in proven]
        assert max(met_by) - min(met_by) <= 1


@given(suspected())
def test_no_host_leads_more_groups_than_it_has_ports(case: tuple[tuple[str, ...], set[str]]) -> None:
    hosts, suspects = case
    for groups in (plan_first_round(hosts), plan_second_round(hosts, suspects), plan_second_round(hosts, hosts)):
        assert all(sum(group[0] == host for group in groups) <= max_led_groups() for host in hosts)


def went(stage: str, groups: Sequence[Group], hosts: Group, works: Mapping[Group, bool]) -> StageResult:
    """A stage in which some groups hang and the others are exact."""
    rank = {True: RankResult(0, bandwidth=1.0), False: RankResult(0, broken="not finished after 10 s")}
    ran = [HostGroupResult(number, (rank[works[group]],)) for number, group in enumerate(groups)]
    said = {
        host: HostReply(1, reply=ProbeReply(tuple(one for one in ran if host in groups[one.group]))) for host in hosts
    }
    return StageResult(stage, tuple(groups), said)  # type: ignore[arg-type] # a stage's name


def play(hosts: Group, bad: Collection[str], ways: Collection[frozenset[str]] = ()) -> list[StageResult]:
    """All stages with some bad hosts and some pairs of hosts between which nothing goes through."""

    def works(group: Group) -> bool:
        pairs = {frozenset((one, other)) for one in group for other in group}
        return not set(group) & set(bad) and not pairs & set(ways)

    rounds = [went("ready", (), hosts, {})]
    while (following := plan_next(rounds, backend="gloo")) is not None:
        stage, groups = following
        if stage == "reach":
            tried = {
                host: HostReply(
                    1, reply=ProbeReply(unreached=tuple(other for other in hosts if frozenset((host, other)) in ways))
                )
                for host in hosts
            }
            rounds.append(StageResult(stage, groups, tried))
        else:
            rounds.append(went(stage, groups, hosts, {group: works(group) for group in groups}))
    return rounds


@settings(max_examples=60)
@given(st.data())
def test_just_the_bad_hosts_are_named_if_one_pair_works(data: st.DataObject) -> None:
    hosts = names(data.draw(st.integers(min_value=4, max_value=40)))
    bad = data.draw(st.sets(st.sampled_from(hosts), max_size=len(hosts)))
    rounds = play(hosts, bad)
    assert sum(one.stage in {"pairs", "again"} for one in rounds) <= 2
    if any(not one.faults for one in group_results(rounds, "pairs")):
        assert {part.host for part in attribute(rounds, "gloo")} == bad


@settings(max_examples=60)
@given(st.data())
def test_if_no_pair_works_at_first_no_good_host_is_named(data: st.DataObject) -> None:
    hosts = names(data.draw(st.integers(min_value=3, max_value=40)))
    bad = {data.draw(st.sampled_from(group)) for group in plan_first_round(hosts)}
    rounds = play(hosts, bad)
    named = {part.host for part in attribute(rounds, "gloo") if not part.everywhere}
    assert named <= bad
    if len(hosts) <= 7 and len(bad) <= len(hosts) - 2:
        assert named == bad


@settings(max_examples=60)
@given(st.integers(min_value=4, max_value=40), st.data())
def test_the_way_between_two_hosts_is_named_as_a_pair(count: int, data: st.DataObject) -> None:
    hosts = names(count)
    one, other = data.draw(st.lists(st.sampled_from(hosts), min_size=2, max_size=2, unique=True))
    again = plan_second_round(
        hosts, {host for group in plan_first_round(hosts) if {one, other} <= set(group) for host in group}
    )
    found = attribute(play(hosts, (), {frozenset((one, other))}), "gloo")
    assert {frozenset((part.host, part.device)) for part in found} == {frozenset((one, other))}
    assert all(part.check == "collective.world" for part in found)
    assert all({one, other} != set(group) for group in again)


def test_of_two_hosts_that_cannot_do_it_the_pair_is_named() -> None:
    (part,) = attribute(play(names(2), {"algo-2"}), "gloo")
    assert (part.host, part.device, part.everywhere) == ("algo-1", "algo-2", False)


def test_a_host_that_was_slow_with_everybody_is_named_where_it_fails_with_one_or_with_all() -> None:
    """As one whose link loses packets: it can be reached, and once in a while not even a pair comes to its end."""
    hosts = names(4)
    quick, slow_one, hangs = (
        RankResult(0, bandwidth=1.0),
        RankResult(0, bandwidth=0.01),
        RankResult(0, waited="Timed out"),
    )

    def stage(name: str, *ran: tuple[Group, RankResult]) -> StageResult:
        done = [(group, HostGroupResult(number, (rank,))) for number, (group, rank) in enumerate(ran)]
        said = {
            host: HostReply(1, reply=ProbeReply(tuple(one for group, one in done if host in group))) for host in hosts
        }
        return StageResult(name, tuple(group for group, _ in ran), said)  # type: ignore[arg-type] # a stage's name

    rounds = [
        stage("ready"),
        stage("pairs", (("algo-1", "algo-2"), quick), (("algo-3", "algo-4"), hangs)),
        stage("again", (("algo-3", "algo-1"), quick), (("algo-4", "algo-2"), slow_one)),
    ]
    assert find_slow_hosts(rounds, "gloo") == ["algo-4"]
    assert attribute(rounds, "gloo") == []
    weak = {
        (one.check, one.host, one.device) for one in report_collectives(rounds, backend="gloo") if one.status != "pass"
    }
    assert weak == {("collective.pair", "algo-4", "algo-3"), ("collective.bandwidth", "algo-4", "algo-2")}
    rounds += [stage("world", (hosts, hangs)), stage("reach", (hosts, quick))]
    (part,) = attribute(rounds, "gloo")
    assert (part.check, part.host, part.everywhere) == ("collective.world", "algo-4", False)


@given(counts)
def test_with_nothing_wrong_there_is_no_second_round_and_nobody_is_named(count: int) -> None:
    rounds = play(names(count), ())
    assert attribute(rounds, "gloo") == []
    expected = ["ready", "pairs", "again", "world"] if count == 3 else ["ready", "pairs", "world"]
    assert [one.stage for one in rounds] == (
        ["ready"] if count == 1 else ["ready", "pairs"] if count == 2 else expected
    )


def test_a_host_that_is_silent_ends_the_bisection() -> None:
    rounds = [
        went("ready", (), names(4), {}),
        StageResult("pairs", plan_first_round(names(4)), {}, {"algo-3": "stopped"}),
    ]
    assert plan_next(rounds, backend="gloo") is None


def test_blame_takes_the_host_that_explains_most_and_leaves_single_pairs() -> None:
    star = [("a", "b"), ("c", "a"), ("a", "d"), ("e", "f")]
    assert explain_unreachable(star) == (("a",), (("e", "f"),))
    assert explain_unreachable([("a", "b"), ("b", "a")]) == ((), (("a", "b"),))
    assert explain_unreachable([]) == ((), ())


def group(*hosts: str, bandwidth: float = 1.0, latency: float = 100.0) -> GroupResult:
    return GroupResult(
        hosts, {host: HostGroupResult(0, (RankResult(0, bandwidth=bandwidth, latency=latency),)) for host in hosts}
    )


def test_slow_is_what_is_far_from_the_others_by_the_measure_of_the_backend() -> None:
    groups = [group("a", "b"), group("c", "d"), group("e", "f", bandwidth=0.5), group("g", "h", bandwidth=0.1)]
    assert [one.members for one in find_slow_groups(groups, "gloo")] == [("g", "h")]
    assert [one.members for one in find_slow_groups(groups, "nccl")] == [("e", "f"), ("g", "h")]
    late = [group("a", "b"), group("c", "d", latency=1500), group("e", "f", latency=5000)]
    assert [one.members for one in find_slow_groups(late, "gloo")] == [("e", "f")]
    assert find_slow_groups([], "gloo") == []


def wrong(*heard: tuple[int, ...]) -> GroupResult:
    ranks = [HostGroupResult(0, (RankResult(0, wrong=1, wrong_from=one),)) for one in heard]
    hosts = names(len(heard))
    return GroupResult(hosts, dict(zip(hosts, ranks, strict=True)))


def test_a_bad_sender_and_a_bad_receiver_are_told_among_three_ranks_and_not_among_two() -> None:
    assert wrong((1,), (), (1,)).suspects() == [("algo-2", 0)]
    assert wrong((1, 2), (), ()).suspects() == [("algo-1", 0)]
    assert wrong((1,), ()).suspects() == []
    assert wrong((), (), ()).suspects() == []
