import numpy as np
import pytest
import torch

from avalanche_hnet.benchmarks import Regression1D
from tests.support.regression import tensors


def assert_is_theirs(benchmark, index, theirs):
    """The data of a task are those of the authors."""
    ours = (*tensors(benchmark.train_stream[index]), *tensors(benchmark.test_stream[index]))
    expected = (
        theirs.get_train_inputs(),
        theirs.get_train_outputs(),
        theirs.get_test_inputs(),
        theirs.get_test_outputs(),
    )
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, torch.from_numpy(other), rtol=1e-14, atol=1e-14)


def task_labels(experience):
    return {label for *_, label in experience.dataset}


def test_default_is_the_authors_data(float64):
    data = pytest.importorskip("hypnettorch.data.special.regression1d_data")
    functions = [lambda x: x + 3.0, lambda x: 2.0 * x**2 - 1, lambda x: np.power(x - 3.0, 3)]
    domains = [(-4, -2), (-1, 1), (2, 4)]
    benchmark = Regression1D()
    assert len(benchmark.train_stream) == len(benchmark.test_stream) == 3
    for index, (function, domain) in enumerate(zip(functions, domains, strict=True)):
        theirs = data.ToyRegression(
            train_inter=domain, num_train=100, test_inter=domain, num_test=50,
            map_function=function, std=0.05, rseed=42,
        )  # fmt: skip
        assert_is_theirs(benchmark, index, theirs)


def test_default_is_what_the_authors_code_gave(float64):
    """First and last training sample, and mean training output and test output, by task."""
    expected = [
        [-3.250919762305275, -0.246567408893366, -3.784217146013391, -0.742857983561590,
         -0.059692531251949, 0.0],
        [-0.250919762305275, -0.869726192357420, -0.784217146013391, 0.271352226654578,
         -0.292020912127925, -0.306122448979592],
        [2.749080237694725, -0.011445737270439, 2.215782853986609, -0.440931662760882,
         -0.039799932970070, 0.0],
    ]  # fmt: skip
    benchmark = Regression1D()
    for train, test, numbers in zip(
        benchmark.train_stream, benchmark.test_stream, expected, strict=True
    ):
        x, y = tensors(train)
        assert (len(x), len(test.dataset)) == (100, 50)
        ours = [x[0], y[0], x[-1], y[-1], y.mean(), tensors(test)[1].mean()]
        assert [v.item() for v in ours] == pytest.approx(numbers, rel=1e-12, abs=1e-14)


def test_posterior_replay_is_the_authors_data(float64):
    data = pytest.importorskip("hypnettorch.data.special.regression1d_data")
    functions = [
        lambda x: np.power(x + 3.0, 3),
        lambda x: 2.0 * np.power(x, 2) - 1,
        lambda x: -np.power(x - 3.0, 3),
    ]
    benchmark = Regression1D.posterior_replay()
    for index, function in enumerate(functions):
        theirs = data.ToyRegression(
            train_inter=benchmark.domains[index], num_train=20,
            test_inter=benchmark.domains[index], num_test=50,
            map_function=function, std=0.05, rseed=42,
        )  # fmt: skip
        assert_is_theirs(benchmark, index, theirs)


def test_functions_of_posterior_replay_meet_at_the_edges():
    benchmark = Regression1D.posterior_replay()
    assert benchmark.domains == ((-4, -2), (-1, 1), (2, 4))
    ends = [
        benchmark.functions[task](np.array([[end]])).item()
        for task, domain in enumerate(benchmark.domains)
        for end in domain
    ]
    assert ends == [-1, 1, 1, 1, 1, -1]


def test_posterior_replay_takes_the_arguments_of_the_class():
    benchmark = Regression1D.posterior_replay(
        n_train=7, n_test=3, noise_std=0, seed=1, return_task_id=False
    )
    assert isinstance(benchmark, Regression1D)
    x, y = tensors(benchmark.train_stream[2])
    assert len(x) == 7
    torch.testing.assert_close(y, -((x - 3) ** 3))
    assert len(benchmark.test_stream[0].dataset) == 3
    assert benchmark.train_stream[2].task_labels == [0]
    with pytest.raises(ValueError, match="n_train must be at least 1, got 0"):
        Regression1D.posterior_replay(n_train=0)


def test_samples_have_the_default_dtype():
    assert {t.dtype for t in tensors(Regression1D().train_stream[0])} == {torch.float32}
    assert {t.dtype for t in tensors(Regression1D().test_stream[0])} == {torch.float32}


def test_samples_have_the_default_dtype_of_float64(float64):
    for stream in (Regression1D().train_stream, Regression1D().test_stream):
        assert {t.dtype for t in tensors(stream[1])} == {torch.float64}


@pytest.mark.parametrize("return_task_id", [True, False])
def test_task_labels(return_task_id):
    benchmark = Regression1D(return_task_id=return_task_id)
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for index, experience in enumerate(stream):
            label = index if return_task_id else 0
            assert experience.task_labels == [label]
            assert experience.task_label == label
            assert task_labels(experience) == {label}


def test_own_functions_and_domains_are_there_for_figures():
    benchmark = Regression1D(
        [np.sin, np.abs], [[0, 3], np.array([-2, -1])], noise_std=0, n_train=7, n_test=3, seed=5
    )
    assert benchmark.functions == (np.sin, np.abs)
    assert benchmark.domains == ((0, 3), (-2, -1))
    for index, experience in enumerate(benchmark.train_stream):
        low, high = benchmark.domains[index]
        x, y = tensors(experience)
        assert x.shape == y.shape == (7, 1)
        assert low <= x.min() < x.max() <= high
        torch.testing.assert_close(y, torch.from_numpy(benchmark.functions[index](x.numpy())))
        x, y = tensors(benchmark.test_stream[index])
        torch.testing.assert_close(x, torch.tensor([low, (low + high) / 2, high])[:, None])
        torch.testing.assert_close(y, torch.from_numpy(benchmark.functions[index](x.numpy())))


def test_noise_is_on_training_outputs_only():
    benchmark = Regression1D([np.sin], [(0, 3)], noise_std=0.3, n_train=5000)
    x, y = tensors(benchmark.train_stream[0])
    assert abs((y - x.sin()).std() - 0.3) < 0.01
    x, y = tensors(benchmark.test_stream[0])
    torch.testing.assert_close(y, x.sin())


def test_seed_decides_the_training_data():
    first, again, other = (
        tensors(Regression1D(seed=seed).train_stream[0])[0] for seed in (1, 1, 2)
    )
    torch.testing.assert_close(first, again)
    assert not torch.equal(first, other)


def test_functions_may_work_in_place():
    def double(x):
        x *= 2
        return x

    x, y = tensors(Regression1D([double], [(1, 2)], noise_std=0).train_stream[0])
    torch.testing.assert_close(y, 2 * x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"functions": [np.sin]}, "got 1 functions and 3 domains"),
        ({"functions": [], "domains": []}, "at least one, got 0 functions and 0 domains"),
        ({"functions": [3.0] * 3}, r"functions\[0\] must be callable, got 3.0"),
        ({"domains": [(0, 1), (1, 1), (0, 1)]}, r"domains\[1\] must be finite .*got \(1, 1\)"),
        ({"domains": [(0, 1), (0, 1), (0, np.inf)]}, r"domains\[2\] must be finite .*inf"),
        ({"domains": [(0, 1), (0, 1, 2), (0, 1)]}, r"domains\[1\] .*got \(0, 1, 2\)"),
        ({"domains": [-1, 0, 1]}, r"domains\[0\] must be finite \(low, high\).*got -1"),
        ({"noise_std": -0.1}, "noise_std must be at least 0 and finite, got -0.1"),
        ({"noise_std": np.nan}, "noise_std must be at least 0 and finite, got nan"),
        ({"n_train": 0}, "n_train must be at least 1, got 0"),
        ({"n_test": 0}, "n_test must be at least 1, got 0"),
        (
            {"functions": [np.ravel], "domains": [(0, 1)]},
            r"functions\[0\] must return the shape of its inputs, \(100, 1\), got \(100,\)",
        ),
        (
            {"functions": [np.sqrt], "domains": [(-1, 1)]},
            r"functions\[0\] must be finite on its domain \(-1.0, 1.0\), but is not at -0\.",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Regression1D(**arguments)
