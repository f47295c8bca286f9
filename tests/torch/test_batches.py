"""Batches: every sample exactly once in an epoch, whatever the world, and wherever a job was cut."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainbox.errors import CheckpointError, HyperparameterError
from trainbox.torch import Batches
from trainbox.torch.batches import Tail, list_tensors, map_tensors
from trainbox.torch.permutation import LARGEST_LISTED, Permutation, derive

WORLDS = (1, 2, 4)


def global_batches(length: int, world: int, **options: Any) -> list[list[int]]:
    """The batches of an epoch as all ranks of a world see them together, in the order of the samples."""
    shares = [list(Batches(length, rank=rank, world_size=world, **options)) for rank in range(world)]
    count = max(len(share) for share in shares)
    found = []
    for number in range(count):
        parts = [share[number] if number < len(share) else [] for share in shares]
        size = sum(map(len, parts))
        found.append([parts[place % world][place // world] for place in range(size)])
    return found


@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 5))
def test_every_world_sees_the_same_batches_and_each_sample_once(length: int, quarter: int, seed: int) -> None:
    options: dict[str, Any] = {"batch_size": 4 * quarter, "seed": seed, "tail": "keep"}
    alone = global_batches(length, 1, **options)
    assert sorted(index for batch in alone for index in batch) == list(range(length))
    for world in WORLDS[1:]:
        assert global_batches(length, world, **options) == alone


def consume(batches: Batches, steps: int, epochs: int) -> Iterator[tuple[int, int]]:
    """What a rank trains on in so many steps, the position moving on as it goes."""
    while batches.epoch < epochs and steps:
        left = batches.left
        for share in batches.keys() if left else ():
            yield from share
            batches.advance()
            steps, left = steps - 1, left - 1
            if not steps:
                return
        for _ in range(left):  # a last batch too small for this rank to have a share of it
            batches.advance()
            steps -= 1
            if not steps:
                return
        batches.next_epoch()


@given(st.data(), st.sampled_from(["drop", "keep", "wrap"]))
def test_cut_anywhere_and_continued_on_another_world_no_sample_comes_twice_or_is_left_out(
    data: st.DataObject, tail: Tail
) -> None:
    length, size, epochs = data.draw(st.integers(8, 100)), 4 * data.draw(st.integers(1, 2)), 3
    seen: list[list[int]] = [[] for _ in range(epochs + 1)]
    state = None
    while state is None or state["epoch"] < epochs:
        world = data.draw(st.sampled_from(WORLDS))
        ranks = [
            Batches(length, batch_size=size, seed=7, rank=rank, world_size=world, tail=tail) for rank in range(world)
        ]
        for batches in ranks:
            if state is not None:
                batches.load_state_dict(state)
        for batches, budget in zip(ranks, [data.draw(st.integers(1, 30))] * world, strict=True):
            for key in consume(batches, budget, epochs):
                seen[key[0]].append(key[1])
        states = [batches.state_dict() for batches in ranks]
        assert all(other == states[0] for other in states)
        state = states[0]
    for epoch in range(epochs):
        counts = Counter(seen[epoch])
        assert set(counts.values()) == {1}
        assert len(counts) == (length // size * size if tail == "drop" else length)


@given(st.integers(1, 5000), st.integers(0, 3), st.integers(0, 3))
def test_an_order_that_is_computed_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    order = Permutation(length, seed, epoch, listed=False)
    whole = order.part(0, length).tolist()
    assert sorted(whole) == list(range(length))
    middle = length // 2
    assert order.part(0, middle).tolist() + order.part(middle, length + 10).tolist() == whole


def test_an_order_that_is_computed_is_as_even_as_chance() -> None:
    """Where a sample comes, and who comes after it, has nothing to do with its number."""
    length = 100_000
    order = torch.from_numpy(Permutation(length, 1, 0, listed=False).part(0, length)).double()
    places = torch.arange(length, dtype=torch.float64)
    for first, second in ((order, places), (order[:-1], order[1:]), (order[:-2], order[2:])):
        assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) < 0.02
    other = Permutation(length, 1, 1, listed=False).part(0, length)
    assert (torch.from_numpy(other) == order.long()).sum() < 10


def test_a_huge_data_set_costs_no_memory_and_the_order_differs_by_epoch() -> None:
    batches = Batches(10**13, batch_size=512, seed=3, rank=1, world_size=4)
    first = next(iter(batches))
    batches.next_epoch()
    assert len(first) == 128
    assert set(first).isdisjoint(next(iter(batches)))
    assert Permutation(LARGEST_LISTED + 1, 0, 0)._listed is None


def test_the_order_is_not_that_of_another_seed_or_epoch() -> None:
    orders = {tuple(Permutation(50, seed, epoch).part(0, 50).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert derive(1, "sample", 23) != derive(12, "sample", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3, "world_size": 4}, "batch-size 3 is below the 4 ranks"),
        ({"batch_size": 10, "world_size": 4}, "batch-size 10 cannot be shared evenly by 4 ranks\n  hint: use 8 or 12"),
        ({"batch_size": 200}, "batch-size 200 is more than the 100 samples"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused_with_what_could(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HyperparameterError) as caught:
        Batches(100, **options)
    assert message in str(caught.value)


def test_the_position_of_other_data_is_refused() -> None:
    state = Batches(100, batch_size=10, seed=1).state_dict()
    with pytest.raises(CheckpointError, match="length=100, and it is 99"):
        Batches(99, batch_size=10, seed=1).load_state_dict(state)
    with pytest.raises(CheckpointError, match="seed=1, and it is 2"):
        Batches(100, batch_size=10, seed=2).load_state_dict(state)


def test_steps_count_what_whole_epochs_really_have() -> None:
    for tail, expected in (("drop", 9), ("keep", 12), ("wrap", 11)):
        batches = Batches(35, batch_size=10, tail=tail)  # type: ignore[arg-type]
        count = 0
        while batches.epoch < 3:
            if batches.left:
                batches.advance()
                count += 1
            else:
                batches.next_epoch()
        assert count == expected == batches.steps(3)


def test_one_more_batch_than_there_is_cannot_be_counted() -> None:
    batches = Batches(10, batch_size=10)
    batches.advance()
    with pytest.raises(IndexError, match="epoch 0 has no batch left"):
        batches.advance()


# ---- loaders ----


class Numbers(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index)


def noisy(sample: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.stack([sample.double(), torch.rand((), generator=generator, dtype=torch.float64)])


def augmented(world: int, workers: int, epoch: int, start: int = 0) -> dict[int, float]:
    """What the augmentation of each sample drew."""
    drawn: dict[int, float] = {}
    for rank in range(world):
        batches = Batches(48, batch_size=8, seed=5, rank=rank, world_size=world)
        batches.load_state_dict({"length": 48, "seed": 5, "epoch": epoch, "consumed": start})
        for batch in batches.loader(Numbers(), workers=workers, augment=noisy):
            drawn.update({int(index): value for index, value in batch.tolist()})
    return drawn


@pytest.mark.process
def test_random_augmentation_belongs_to_the_sample_and_the_epoch_alone() -> None:
    alone = augmented(world=1, workers=0, epoch=0)
    assert len(set(alone.values())) == 48
    assert augmented(world=2, workers=1, epoch=0) == alone
    assert augmented(world=4, workers=0, epoch=0) == alone
    resumed = augmented(world=1, workers=0, epoch=0, start=16)
    assert resumed.items() < alone.items()
    later = augmented(world=1, workers=0, epoch=1)
    assert all(later[index] != alone[index] for index in alone)


@pytest.mark.process
def test_a_loader_leaves_the_global_generator_alone() -> None:
    """Otherwise a job that was cut within an epoch, and so began one loader more, would draw another dropout."""
    before = torch.get_rng_state()
    for workers in (0, 1):
        loader = Batches(48, batch_size=8).loader(Numbers(), workers=workers)
        list(loader)
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.process
def test_what_workers_fetch_ahead_does_not_move_the_position() -> None:
    batches = Batches(48, batch_size=8, seed=1)
    expected = list(batches)
    loader = batches.loader(Numbers(), workers=2)
    arrived: Iterator[Any] = iter(loader)
    first = [next(arrived).tolist()]
    batches.advance()
    assert batches.state_dict()["consumed"] == 8
    del arrived
    # The same workers begin anew, where the position is.
    assert first + [batch.tolist() for batch in loader] == expected


def test_a_data_set_is_asked_for_a_batch_at_a_time_where_it_can_be() -> None:
    asked: list[list[int]] = []

    class Table(Numbers):
        def __getitems__(self, indices: list[int]) -> list[int]:
            asked.append(indices)
            return indices

    collate: Callable[[list[Any]], Any] = list
    assert list(Batches(48, batch_size=16).loader(Table(), collate=collate)) == asked
    assert [len(indices) for indices in asked] == [16, 16, 16]


class Pair(NamedTuple):
    inputs: torch.Tensor
    weights: list[torch.Tensor]


def test_every_tensor_of_a_nested_batch_is_changed_and_nothing_else() -> None:
    one, two, three = torch.tensor([1]), torch.tensor([2]), torch.tensor([3])
    batch = {"pair": Pair(one, [two]), "name": "a", "rest": (OrderedDict(last=three), None, 7)}
    assert list_tensors(batch) == [one, two, three]
    changed = map_tensors(batch, lambda tensor: tensor * 10)
    ten, twenty, thirty = torch.tensor([10]), torch.tensor([20]), torch.tensor([30])
    assert changed == {"pair": Pair(ten, [twenty]), "name": "a", "rest": (OrderedDict(last=thirty), None, 7)}
    assert [type(value) for value in changed.values()] == [Pair, str, tuple]
    assert list_tensors("no tensor") == []
