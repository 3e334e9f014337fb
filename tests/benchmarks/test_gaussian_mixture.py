import numpy as np
import pytest
import torch

from avalanche_hnet.benchmarks import GaussianMixture2D
from tests.support.streams import tensors


def test_default_has_the_authors_modes():
    """Their means are CHE_MEANS, two neighbours to a task, and the covariance is 0.2² I."""
    data = pytest.importorskip("hypnettorch.data.special.gaussian_mixture_data")
    benchmark = GaussianMixture2D()
    np.testing.assert_allclose(benchmark.means.reshape(6, 2), data.CHE_MEANS, atol=1e-14)
    assert benchmark.std == 0.2


def test_modes_go_round_the_circle():
    means = GaussianMixture2D().means
    half = 5 * np.sqrt(3) / 2
    expected = [[[2.5, half], [5, 0]], [[2.5, -half], [-2.5, -half]], [[-5, 0], [-2.5, half]]]
    np.testing.assert_allclose(means, expected, atol=1e-14)
    other = GaussianMixture2D(2, 4, radius=2.0).means
    assert other.shape == (2, 4, 2)
    np.testing.assert_allclose(np.linalg.norm(other, axis=2), 2)
    steps = np.linalg.norm(np.diff(other.reshape(8, 2), axis=0), axis=1)
    np.testing.assert_allclose(steps, 4 * np.sin(np.pi / 8))


@pytest.mark.parametrize("from_zero", [True, False])
@pytest.mark.parametrize("return_task_id", [True, False])
def test_labels(from_zero, return_task_id):
    benchmark = GaussianMixture2D(
        return_task_id=return_task_id, class_ids_from_zero_in_each_exp=from_zero
    )
    for stream, n in ((benchmark.train_stream, 10), (benchmark.test_stream, 100)):
        assert len(stream) == 3
        for index, experience in enumerate(stream):
            x, y, t = tensors(experience)
            first = 0 if from_zero else 2 * index
            assert x.shape == (2 * n, 2)
            assert x.dtype == torch.float32
            assert y.tolist() == [first] * n + [first + 1] * n
            assert experience.classes_in_this_experience == {first, first + 1}
            assert set(t.tolist()) == {index if return_task_id else 0} == {*experience.task_labels}
            assert list(experience.dataset.targets) == y.tolist()


def test_samples_have_the_default_dtype_of_float64(float64):
    assert tensors(GaussianMixture2D().train_stream[1])[0].dtype == torch.float64


@pytest.mark.parametrize("stream", ["train_stream", "test_stream"])
def test_samples_are_normal_around_the_means(stream):
    benchmark = GaussianMixture2D(std=0.7, n_train=3000, n_test=3000)
    for means, experience in zip(benchmark.means, getattr(benchmark, stream), strict=True):
        x, y, _ = tensors(experience)
        for mean, class_ in zip(means, y.unique(), strict=True):
            deviation = (x[y == class_] - torch.from_numpy(mean)) / 0.7
            torch.testing.assert_close(
                deviation.mean(0), torch.zeros(2).double(), atol=0.08, rtol=0
            )
            torch.testing.assert_close(deviation.T.cov(), torch.eye(2).double(), atol=0.12, rtol=0)
            assert abs((deviation**4).mean() - 3) < 0.6


def test_without_spread_samples_are_the_means():
    benchmark = GaussianMixture2D(std=0, n_train=1)
    for means, experience in zip(benchmark.means, benchmark.train_stream, strict=True):
        torch.testing.assert_close(tensors(experience)[0], torch.from_numpy(means).float())


def test_seed_decides_the_samples():
    first, again, other = (tensors(GaussianMixture2D(seed=s).train_stream[0])[0] for s in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.isin(first, other).any()


def test_all_samples_are_drawn_anew():
    benchmark = GaussianMixture2D(n_train=100)
    noise = [
        tensors(stream[task])[0][rows] - torch.from_numpy(benchmark.means[task, mode])
        for stream in (benchmark.train_stream, benchmark.test_stream)
        for task in range(3)
        for mode, rows in enumerate((slice(100), slice(100, 200)))
    ]
    assert len(torch.cat(noise).round(decimals=4).unique(dim=0)) > 0.99 * 1200


def test_sizes_do_not_change_the_other_samples():
    few, many = GaussianMixture2D(n_train=3), GaussianMixture2D(n_train=30)
    for a, b in zip(few.test_stream, many.test_stream, strict=True):
        assert torch.equal(tensors(a)[0], tensors(b)[0])


def test_global_random_numbers_are_left_alone():
    np.random.seed(0)
    torch.manual_seed(0)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(0)
    torch.manual_seed(0)
    GaussianMixture2D()
    assert (np.random.rand(), torch.rand(1)) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_tasks": 0}, "n_tasks must be at least 1, got 0"),
        ({"n_tasks": 2.5}, "n_tasks must be an integer of at least 1, got 2.5"),
        ({"modes_per_task": 0}, "modes_per_task must be at least 1, got 0"),
        ({"n_train": 0}, "n_train must be at least 1, got 0"),
        ({"n_test": -1}, "n_test must be at least 1, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": None}, "seed must be an integer of at least 0, got None"),
        ({"std": -0.1}, "std must be at least 0 and finite, got -0.1"),
        ({"std": "0.1"}, "std must be a number of at least 0, got '0.1'"),
        ({"radius": 0.0}, "radius must be positive and finite, got 0.0"),
        ({"radius": float("inf")}, "radius must be positive and finite, got inf"),
        ({"radius": None}, "radius must be a positive number, got None"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        GaussianMixture2D(**arguments)
