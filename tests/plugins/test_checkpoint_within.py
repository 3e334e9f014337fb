"""A run goes on in the middle of an experience."""

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.benchmarks.utils import concat_datasets
from avalanche.models import SimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_hnet import CheckpointPlugin, InMemoryPlugin
from tests.support.checkpoint_runs import (
    METHODS,
    Stop,
    Stopped,
    assert_same,
    make,
    mlp,
    result,
    script,
)

pytestmark = pytest.mark.filterwarnings("ignore:No loggers", "ignore::DeprecationWarning")


def stoppable(method, folder, n=10**6, moment="after_training_iteration"):
    strategy = make(method, folder, 3, epochs=2)
    strategy.plugins.append(Stop(moment, n))
    return strategy


def ends_alike(method, folder, stops):
    undisturbed = stoppable(method, None)
    expected = result(undisturbed, script(undisturbed, method))
    for stop in stops:
        with pytest.raises(Stopped):
            script(stoppable(method, folder, *stop), method)
    strategy = stoppable(method, folder)
    assert_same(expected, result(strategy, script(strategy, method)))


@pytest.mark.parametrize("method", ["diagonal", "kronecker", "hypernet", "naive", "growing"])
def test_stopped_again_and_again(method, tmp_path):
    """In the first epoch, the second, in the second experience, and in its evaluation."""
    train, evaluate = "after_training_iteration", "before_eval_iteration"
    ends_alike(method, tmp_path, [(4, train), (5, train), (7, train), (1, evaluate)])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_stopped_at_many_iterations(method, tmp_path):
    if method == "GEM":
        pytest.importorskip("quadprog")
    for n in (1, 4, 7, 12, 13, 17, 25):
        ends_alike(method, tmp_path / str(n), [(n,), (2,)])


@pytest.mark.parametrize("in_memory", [False, True])
def test_small_tasks_are_drawn_again_in_the_middle_of_an_epoch(tmp_path, in_memory):
    """These draws depend on the dropout before them."""
    generator = torch.Generator().manual_seed(0)
    sizes = (90, 20)
    data = [(torch.randn(n, 64, generator=generator), torch.arange(n) % 2) for n in sizes]
    of_tasks = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0, 1])
    first, second = of_tasks.train_stream
    first._dataset = concat_datasets([first.dataset, second.dataset])

    def new(folder, n=10**6):
        torch.manual_seed(0)
        model = SimpleMLP(num_classes=2, input_size=64, hidden_size=20)
        plugins = [Stop("after_training_iteration", n)]
        if in_memory:
            plugins.append(InMemoryPlugin())
        if folder is not None:
            plugins.append(CheckpointPlugin(folder, every_iterations=2))
        return Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            train_mb_size=10,
            train_epochs=2,
            plugins=plugins,
            evaluator=EvaluationPlugin(loggers=[]),
        )

    undisturbed = new(None)
    expected = result(undisturbed, [undisturbed.train(first)])
    n_iterations = undisturbed.clock.train_iterations
    assert n_iterations == 36
    for n in (9, 14, 20):
        with pytest.raises(Stopped):
            new(tmp_path / str(n), n).train(first)
        strategy = new(tmp_path / str(n))
        assert_same(expected, result(strategy, [strategy.train(first)]))


def test_the_start_of_the_experience_is_kept(tmp_path):
    strategy = stoppable("naive", tmp_path, 17)
    with pytest.raises(Stopped):
        script(strategy, "naive")
    names = sorted(path.name for path in tmp_path.iterdir())
    within = [name for name in names if "within" in name]
    assert len(within) == 2
    assert {f"checkpoint-{name[-11:-3]}.pt" for name in within} <= {*names}


@pytest.mark.parametrize("damaged", [-1, 0])
def test_damage_in_the_middle_of_an_experience(tmp_path, damaged):
    """Of the newest file, or of the one that the newest goes on from."""
    undisturbed = stoppable("naive", None)
    expected = result(undisturbed, script(undisturbed, "naive"))
    with pytest.raises(Stopped):
        script(stoppable("naive", tmp_path, 5), "naive")
    path = sorted(tmp_path.iterdir())[damaged]
    path.write_bytes(path.read_bytes()[:-100])
    strategy = stoppable("naive", tmp_path)
    with pytest.warns(UserWarning, match="the checkpoint before it is used"):
        returned = script(strategy, "naive")
    assert_same(expected, result(strategy, returned))


def test_a_loop_of_its_own_is_refused(tmp_path):
    class OtherLoop(Naive):
        def training_epoch(self, **kwargs):
            super().training_epoch(**kwargs)

    model = mlp()
    strategy = OtherLoop(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        plugins=[CheckpointPlugin(tmp_path / "new", every_iterations=2)],
        evaluator=EvaluationPlugin(loggers=[]),
    )
    with pytest.raises(ValueError, match="every_iterations does not go with OtherLoop"):
        script(strategy)
    assert not (tmp_path / "new").exists()
