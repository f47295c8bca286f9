"""Which points a search proposes: seeded, never twice, within their ranges; and which trials it stops early."""

import statistics

import msgspec
import pytest

from tests.support.searches import FOUR, four_parameters, settings, simulate
from trainbox.local.results.record import Curve
from trainbox.tuning.search.early_stopping import is_behind, running_averages
from trainbox.tuning.search.search import TrialSearch
from trainbox.tuning.search_space import (
    CategoricalRange,
    ContinuousRange,
    IntegerRange,
    Resource,
    SearchSettings,
    Strategy,
    is_within,
)

EVERY: tuple[Strategy, ...] = ("Bayesian", "Random", "Hyperband")


@pytest.mark.parametrize("strategy", EVERY)
def test_the_same_seed_gives_the_same_search_and_another_seed_another(strategy: Strategy) -> None:
    first, again, other = (
        simulate(settings(strategy=strategy, trials=9, seed=seed), four_parameters) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("strategy", EVERY)
def test_a_search_that_goes_on_proposes_what_it_would_have_proposed(strategy: Strategy) -> None:
    given = settings(strategy=strategy, trials=10)
    whole = simulate(given, four_parameters)
    search = TrialSearch(given)
    for number, (values, value) in enumerate(whole[:7], start=1):
        search.resume(number, values)
        search.tell(number, value)
    for number, (values, value) in enumerate(whole[7:], start=8):
        assert search.ask(number) == values
        search.tell(number, value)


@pytest.mark.parametrize("strategy", EVERY)
def test_every_point_lies_within_its_ranges_and_none_comes_twice(strategy: Strategy) -> None:
    ranges = (
        *FOUR,
        IntegerRange("rounds", 1, 1000, "Logarithmic"),
        ContinuousRange("momentum", 0.9, 0.999, "ReverseLogarithmic"),
    )
    points = [values for values, _ in simulate(settings(*ranges, strategy=strategy, trials=25), four_parameters)]
    assert len({tuple(point.items()) for point in points}) == 25
    assert all(is_within(point, ranges) for point in points)
    assert all(point["max_depth"].isdecimal() and point["rounds"].isdecimal() for point in points)
    assert {point["booster"] for point in points} <= {"gbtree", "dart"}


@pytest.mark.parametrize(
    ("given", "middle"),
    [
        (ContinuousRange("p", 0.0001, 1.0, "Logarithmic"), 0.01),
        (ContinuousRange("p", 0.0, 0.9999, "ReverseLogarithmic"), 0.99),
        (ContinuousRange("p", 0.0, 1.0), 0.5),
        (IntegerRange("p", 1, 10_000, "Logarithmic"), 100),
    ],
)
def test_a_scale_decides_where_the_points_lie(given: ContinuousRange | IntegerRange, middle: float) -> None:
    points = [
        float(values["p"]) for values, _ in simulate(settings(given, strategy="Random", trials=200), lambda _: 0.0)
    ]
    below = sum(point < middle for point in points)
    # Half of them on either side of the middle of the scale, not of the range.
    assert 50 < below < 150


@pytest.mark.parametrize("strategy", [*EVERY, "Grid"])
def test_a_search_ends_when_all_points_were_tried(strategy: Strategy) -> None:
    ranges = (CategoricalRange("a", ("x", "y", "z")), CategoricalRange("b", ("1", "2")))
    points = [values for values, _ in simulate(settings(*ranges, strategy=strategy, trials=50), lambda _: 1.0)]
    assert len(points) == 6
    assert len({tuple(point.items()) for point in points}) == 6


def test_a_grid_is_tried_in_order() -> None:
    ranges = (CategoricalRange("a", ("x", "y")), CategoricalRange("b", ("1", "2")))
    points = [values for values, _ in simulate(settings(*ranges, strategy="Grid", trials=4), lambda _: 1.0)]
    assert points == [{"a": "x", "b": "1"}, {"a": "x", "b": "2"}, {"a": "y", "b": "1"}, {"a": "y", "b": "2"}]


def test_what_an_earlier_search_has_found_is_learned_from_and_not_tried_again() -> None:
    earlier = simulate(settings(trials=20), four_parameters)
    search = TrialSearch(settings(trials=5, seed=7))
    for values, value in earlier:
        search.learn(values, value)
    found = [search.ask(number) for number in range(1, 6)]
    assert not [point for point in found if point in [values for values, _ in earlier]]
    cold = statistics.median(value for _, value in simulate(settings(trials=5, seed=7), four_parameters))
    assert statistics.median(four_parameters(point) for point in found if point) > cold


def test_a_search_goes_on_without_the_values_of_trials_that_failed() -> None:
    search, points = TrialSearch(settings(trials=12)), []
    for number in range(1, 13):
        point = search.ask(number)
        assert point is not None
        points.append(point)
        search.tell(number, None if number % 2 else four_parameters(point))
    assert len({tuple(point.items()) for point in points}) == 12


def test_a_bayesian_search_finds_more_than_random_points() -> None:
    """The figure of the benchmark: 20 trials, 2 at a time, the seeds 0 to 11."""
    best = {
        strategy: statistics.median(
            max(value for _, value in simulate(settings(strategy=strategy, seed=seed), four_parameters, parallel=2))
            for seed in range(12)
        )
        for strategy in ("Bayesian", "Random")
    }
    assert best["Random"] == pytest.approx(-0.470, abs=0.02)
    assert best["Bayesian"] >= -0.20


# -- early stopping ----------------------------------------------------------------------------------------------------


def test_the_running_average_is_that_of_all_values_up_to_a_step() -> None:
    assert running_averages(Curve((0, 1, 4), (1.0, 3.0, 2.0))) == Curve((0, 1, 4), (1.0, 2.0, 2.0))


@pytest.mark.parametrize(
    ("value", "goal", "stops"),
    [
        (0.49, "Maximize", True),
        (0.50, "Maximize", False),
        (0.51, "Maximize", False),
        (0.49, "Minimize", False),
        (0.51, "Minimize", True),
    ],
)
def test_a_trial_is_behind_where_it_is_worse_than_the_median_of_the_running_averages(
    value: float, goal: str, stops: bool
) -> None:
    # At step 2 the averages are 0.3, 0.5 and 0.9: the last values, 0.9, 0.5 and 0.9, have another median.
    earlier = [running_averages(Curve((0, 1, 2, 3), values)) for values in ((0, 0, 0.9, 1), (0.5,) * 4, (0.9,) * 4)]
    assert is_behind(2, value, earlier, goal) is stops  # type: ignore[arg-type]


def test_a_trial_is_compared_with_those_that_came_as_far() -> None:
    short = running_averages(Curve((0, 1), (0.9, 0.9)))
    assert is_behind(1, 0.5, [short], "Maximize")
    assert not is_behind(2, 0.5, [short], "Maximize")
    assert not is_behind(0, 0.5, [], "Maximize")


def test_a_trial_that_was_resumed_repeats_steps() -> None:
    search = TrialSearch(settings(trials=3, early_stop=True))
    for number, values in ((1, (0.2, 0.4, 0.6)), (2, (0.3, 0.5, 0.7))):
        search.ask(number)
        for step, value in enumerate(values):
            search.is_hopeless(number, step, value)
        if number == 1:
            search.is_hopeless(number, 1, 0.4)  # from its checkpoint on
            search.is_hopeless(number, 2, 0.6)
        search.tell(number, values[-1])
    search.ask(3)
    assert not search.is_hopeless(3, 2, 0.46)
    assert search.is_hopeless(3, 2, 0.44)  # the averages are 0.4 and 0.5


def test_hyperband_stops_the_worse_of_those_that_reach_a_rung() -> None:
    given = msgspec.structs.replace(settings(strategy="Hyperband", trials=30), resource=Resource(1, 27))
    search = TrialSearch(given)
    lengths = {}
    for number in range(1, 31):
        search.ask(number)
        quality = (number * 7) % 30 / 30
        for step in range(27):
            lengths[number] = step + 1
            if search.is_hopeless(number, step, quality * (step + 1)):
                break
        stopped = lengths[number] < 27
        search.tell(number, quality, is_stopped_early=stopped)
    assert {1, 3, 9} & set(lengths.values())
    assert lengths[max(lengths, key=lambda number: (number * 7) % 30)] == 27
    assert sum(lengths.values()) < 27 * 30 * 0.7


def test_hyperband_looks_at_the_epochs_wherever_they_begin_and_however_seldom_they_are_logged() -> None:
    for steps in (range(27), range(1, 28), range(0, 27, 2)):
        given = msgspec.structs.replace(settings(strategy="Hyperband", trials=12), resource=Resource(1, 27))
        search, stopped = TrialSearch(given), []
        for number in range(1, 13):
            search.ask(number)
            decisions = [search.is_hopeless(number, step, -float(number) - step / 100) for step in steps]
            found = any(decisions)
            stopped += [number] * found
            search.tell(number, -float(number), is_stopped_early=found)
        assert stopped
        assert 1 not in stopped


def test_points_are_text_as_a_script_receives_it() -> None:
    search = TrialSearch(SearchSettings(objective=settings().objective, ranges=FOUR, max_trials=1))
    point = search.ask(1)
    assert point is not None
    assert float(point["eta"]) == float(repr(float(point["eta"])))
    assert [*point] == ["eta", "max_depth", "subsample", "booster"]
