from inspect import signature

import pytest
import torch
from avalanche.benchmarks import SplitMNIST

from avalanche_hnet.benchmarks import PermutedDigits, SplitDigits


def labels_and_tasks(experience):
    return sorted(set(experience.dataset.targets)), sorted(
        set(experience.dataset.targets_task_labels)
    )


@pytest.mark.parametrize("from_zero", [False, True])
@pytest.mark.parametrize("task_ids", [False, True])
def test_split_has_the_options_of_split_mnist(from_zero, task_ids):
    benchmark = SplitDigits(
        5, return_task_id=task_ids, shuffle=False, class_ids_from_zero_in_each_exp=from_zero
    )
    for stream, size in ((benchmark.train_stream, 1347), (benchmark.test_stream, 450)):
        assert sum(len(e.dataset) for e in stream) == size
        for index, experience in enumerate(stream):
            classes = [0, 1] if from_zero else [2 * index, 2 * index + 1]
            assert labels_and_tasks(experience) == (classes, [index if task_ids else 0])
            x, *_ = experience.dataset[0]
            assert x.shape == (1, 8, 8)
            assert x.dtype == torch.float32


def test_class_order():
    orders = [
        [e.classes_in_this_experience for e in SplitDigits(5, seed=seed).train_stream]
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    fixed = SplitDigits(2, fixed_class_order=[9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    assert set(fixed.train_stream[0].classes_in_this_experience) == {5, 6, 7, 8, 9}
    renamed = SplitDigits(
        2, fixed_class_order=[*range(9, -1, -1)], class_ids_from_zero_from_first_exp=True
    )
    assert set(renamed.train_stream[0].classes_in_this_experience) == {0, 1, 2, 3, 4}


def test_signature_is_that_of_split_mnist():
    theirs = set(signature(SplitMNIST).parameters) - {"dataset_root"}
    assert set(signature(SplitDigits).parameters) == theirs


def test_normalised_by_default_and_raw_on_request():
    benchmark = SplitDigits(1)
    pixels = torch.stack([x for x, *_ in benchmark.train_stream[0].dataset])
    assert abs(pixels.mean()) < 1e-3
    assert abs(pixels.std() - 1) < 1e-3
    raw = SplitDigits(1, train_transform=None, eval_transform=None)
    for stream in (raw.train_stream, raw.test_stream):
        pixels = torch.stack([x for x, *_ in stream[0].dataset])
        assert pixels.min() == 0
        assert pixels.max() == 1


def test_train_and_test_are_disjoint_and_stratified():
    benchmark = SplitDigits(1)
    train, test = benchmark.train_stream[0].dataset, benchmark.test_stream[0].dataset
    counts = torch.bincount(torch.tensor(list(test.targets)))
    assert counts.min() >= 43
    train_images = {x.numpy().tobytes() for x, *_ in train}
    assert not any(x.numpy().tobytes() in train_images for x, *_ in test)


@pytest.mark.parametrize("task_ids", [False, True])
def test_permutations_move_pixels_only(task_ids):
    plain = SplitDigits(1).train_stream[0].dataset
    benchmark = PermutedDigits(3, return_task_id=task_ids, seed=4)
    images = []
    for index, experience in enumerate(benchmark.train_stream):
        assert labels_and_tasks(experience) == ([*range(10)], [index if task_ids else 0])
        x, y, _ = experience.dataset[7]
        assert y == plain[7][1]
        torch.testing.assert_close(x.flatten().sort()[0], plain[7][0].flatten().sort()[0])
        images.append(x)
    assert not torch.equal(images[0], images[1])
    again = PermutedDigits(3, seed=4).train_stream[0].dataset[7][0]
    torch.testing.assert_close(images[0], again)
    test_image = benchmark.test_stream[0].dataset[0][0]
    unpermuted = SplitDigits(1).test_stream[0].dataset[0][0]
    moved = {p.item() for p in (unpermuted.flatten() != test_image.flatten()).nonzero()}
    assert moved


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SplitDigits(3), "n_experiences must be 1, 2, 5 or 10, got 3"),
        (lambda: PermutedDigits(0), "n_experiences must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
