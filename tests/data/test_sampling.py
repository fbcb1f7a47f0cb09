from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.sampling import PKBatchSampler
from models.errors import InputError


def labels_of(counts: list[int], seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def stream(sampler: PKBatchSampler, epochs: int) -> NDArray[np.int64]:
    """All batches, shape (batches, P, K)."""
    batches = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches += list(sampler)
    return np.array(batches).reshape(len(batches), -1, sampler.samples_per_class)


problems = st.fixed_dictionaries(
    {
        "counts": st.lists(st.integers(1, 9), min_size=1, max_size=30),
        "p": st.integers(1, 30),
        "k": st.integers(1, 5),
        "batches": st.integers(1, 5),
        "seed": st.integers(0, 3),
    }
)


@settings(max_examples=60)
@given(problems)
def test_the_promises(problem: dict[str, object]) -> None:
    counts, p, k = problem["counts"], problem["p"], problem["k"]
    labels = labels_of(counts)
    sampler = PKBatchSampler(labels, p, k, problem["batches"], problem["seed"])
    p = min(p, len(counts))
    drawn = stream(sampler, epochs=12)
    classes = labels[drawn]
    assert (classes == classes[:, :, :1]).all(), "an image of another class in a class's place"
    visited = classes[:, :, 0]
    assert all(len(set(batch)) == p for batch in visited.tolist()), "a class twice in a batch"
    sequence = visited.ravel().tolist()
    for start in range(0, len(sequence) - len(counts) + 1, len(counts)):
        assert len(set(sequence[start : start + len(counts)])) == len(counts), "a class missed"
    for batch in drawn.reshape(-1, k).tolist():
        assert len(set(batch)) == min(k, counts[labels[batch[0]]]), "an image twice without need"


def test_every_image_of_a_class_comes_before_any_again() -> None:
    labels = labels_of([12, 8])
    drawn = stream(PKBatchSampler(labels, 2, 4, 6, seed=5), epochs=4)
    for label, visits_a_pass in ((0, 3), (1, 2)):
        visits = drawn[labels[drawn[:, :, 0]] == label]
        passes = [visits[i : i + visits_a_pass].ravel() for i in range(0, 24, visits_a_pass)]
        assert all(len(set(images.tolist())) == 4 * visits_a_pass for images in passes)
        assert any(set(a[:4]) != set(b[:4]) for a, b in pairwise(passes))


@settings(max_examples=30)
@given(problems, st.integers(2, 3))
def test_processes_take_parts_of_the_same_batches(problem: dict[str, object], world_size: int) -> None:
    labels, p, k = labels_of(problem["counts"]), problem["p"], problem["k"]
    if p * world_size > len(problem["counts"]):
        return
    whole = PKBatchSampler(labels, p * world_size, k, 7, problem["seed"])
    parts = [
        PKBatchSampler(labels, p, k, 7, problem["seed"], rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    together = np.concatenate([stream(part, 3) for part in parts], axis=1)
    assert np.array_equal(together, stream(whole, 3))


def test_any_batch_can_be_reached_directly() -> None:
    labels = labels_of([3] * 10)
    for p in (3, 7, 10):
        drawn = stream(PKBatchSampler(labels, p, 2, 5), epochs=30)
        for number in (149, 3, 77):
            fresh = PKBatchSampler(labels, p, 2, 5)
            assert np.array_equal(fresh.batch(*divmod(number, 5)), drawn[number].ravel())


def test_the_global_generators_play_no_part() -> None:
    labels = labels_of([4] * 20)
    np.random.seed(1)  # noqa: NPY002 - the global generator is what must not matter
    first = stream(PKBatchSampler(labels, 4, 2, 5), 2)
    np.random.seed(2)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert np.array_equal(stream(PKBatchSampler(labels, 4, 2, 5), 2), first)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert not np.array_equal(stream(PKBatchSampler(labels, 4, 2, 5, seed=1), 2), first)


def test_an_epoch_is_a_pass_over_the_images() -> None:
    sampler = PKBatchSampler(labels_of([5] * 10), 4, 2)
    assert len(sampler) == len(list(sampler)) == 7  # 50 images in batches of 8
    assert len(PKBatchSampler(labels_of([5] * 10), 2, 2, world_size=2)) == 7
    assert len(PKBatchSampler(labels_of([2, 2, 1]), 2, 2, small_classes="skip")) == 1


def test_batches_take_all_classes_where_there_are_fewer(caplog: pytest.LogCaptureFixture) -> None:
    sampler = PKBatchSampler(labels_of([4] * 5), 16, 2, 3)
    assert stream(sampler, 1).shape == (3, 5, 2)
    assert "batches of 5 classes instead of 16" in caplog.text
    with pytest.raises(InputError, match="1 usable classes for 2 processes"):
        PKBatchSampler(labels_of([4]), 16, 2, world_size=2)


def test_small_classes() -> None:
    labels = labels_of([1, 2, 5, 5])
    names = ["one", "two", "five", "more"]
    repeated = stream(PKBatchSampler(labels, 4, 4, 20, small_classes="repeat"), 1)
    of_two = repeated[labels[repeated[:, :, 0]] == 1]
    assert all(Counter(images).most_common()[0][1] == 2 for images in of_two.tolist())
    skipped = stream(PKBatchSampler(labels, 2, 4, 20, small_classes="skip"), 1)
    assert set(labels[skipped].ravel().tolist()) == {2, 3}
    with pytest.raises(
        InputError, match=r"2 classes have fewer than samples_per_class=4 images \(one, two\)"
    ):
        PKBatchSampler(labels, 2, 4, small_classes="error", class_names=names)
    with pytest.raises(InputError, match="0 usable classes for 1 processes"):
        PKBatchSampler(labels, 2, 6, small_classes="skip")


def test_classes_without_images_are_never_drawn() -> None:
    labels = np.array([0, 0, 3, 3, 5, 5])
    drawn = labels[stream(PKBatchSampler(labels, 2, 2, 9), 2)]
    assert set(drawn.ravel().tolist()) == {0, 3, 5}


def test_groups_come_together() -> None:
    labels = labels_of([2] * 32)
    groups = np.arange(32) // 4
    sampler = PKBatchSampler(labels, 8, 2, 4, groups=groups)
    visited = labels[stream(sampler, 3)[:, :, 0]]
    assert all(len(set(groups[batch].tolist())) == 2 for batch in visited)
    assert len({tuple(sorted(set(groups[batch].tolist()))) for batch in visited}) > 4
    with pytest.raises(InputError, match="3 groups for 32 classes"):
        PKBatchSampler(labels, 8, 2, groups=[0, 1, 2])
    with pytest.raises(InputError, match="set group_by or regroup"):
        PKBatchSampler(labels, 8, 2, group_from_epoch=1)


@pytest.mark.parametrize("batches", [3, 4, 5])
@pytest.mark.parametrize("regroup", [False, True])
def test_grouped_from_an_epoch_on(batches: int, regroup: bool) -> None:
    labels, groups = np.repeat(np.arange(32), 4), np.arange(32) // 4
    plain = PKBatchSampler(labels, 8, 2, batches, regroup=regroup)
    later = PKBatchSampler(labels, 8, 2, batches, groups=groups, group_from_epoch=3, regroup=regroup)
    number = batches * 3
    for at in range(number):
        epoch, batch = divmod(at, batches)
        assert np.array_equal(later.batch(epoch, batch), plain.batch(epoch, batch))
    # The first pass that begins in epoch 3 or later; a pass is four batches, or what is left of an epoch.
    first = number if regroup else -(-number // 4) * 4
    for at in range(first, first + 8):
        epoch, batch = divmod(at, batches)
        if not regroup or batch < 4:
            classes = labels[later.batch(epoch, batch)]
            assert len(set(groups[classes].tolist())) == 2
            assert len(set(classes.tolist())) == 8


def test_groups_that_change_resume() -> None:
    labels = labels_of([2] * 32)
    sampler = PKBatchSampler(labels, 8, 2, 3, regroup=True)
    ungrouped = stream(sampler, 1)
    sampler.set_epoch(4)
    sampler.set_groups(np.arange(32) % 8)
    grouped = np.array(list(sampler))
    assert not np.array_equal(grouped, ungrouped.reshape(3, -1))
    resumed = PKBatchSampler(labels, 8, 2, 3, regroup=True)
    resumed.load_state_dict(sampler.state_dict())
    assert np.array_equal(list(resumed), grouped)
    with pytest.raises(ValueError, match="regroup=True"):
        PKBatchSampler(labels, 8, 2).set_groups(None)


def test_senseless_sizes() -> None:
    with pytest.raises(InputError, match="at least 1"):
        PKBatchSampler([0, 1], 0, 2)
