"""A run that goes on ends as one that was never interrupted, bit for bit."""

import random

import numpy as np
import pytest
import torch
from avalanche.evaluation import metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin

from avalanche_hnet import CheckpointPlugin, TaskInferencePlugin
from avalanche_hnet.metrics import task_inference_metrics
from tests.support.checkpoint_runs import (
    METHODS,
    Options,
    assert_same,
    benchmark,
    make,
    mlp,
    result,
    script,
)

pytestmark = pytest.mark.filterwarnings("ignore:No loggers", "ignore::DeprecationWarning")


@pytest.mark.parametrize("method", METHODS)
def test_resumed_after_every_call(method, tmp_path):
    if method == "GEM":
        pytest.importorskip("quadprog")
    undisturbed = make(method)
    expected = result(undisturbed, script(undisturbed, method))
    for calls in range(6):
        script(make(method, tmp_path), method, stop_after=calls)
    strategy = make(method, tmp_path)
    assert_same(expected, result(strategy, script(strategy, method)))


def test_a_finished_run_is_restored_and_can_be_longer(tmp_path):
    undisturbed = make("diagonal")
    expected = result(undisturbed, script(undisturbed, n_experiences=3))
    first = make("diagonal", tmp_path)
    script(first, stop_after=4)
    again = make("diagonal", tmp_path)
    script(again, stop_after=4)
    assert_same(result(first, []), result(again, []))
    assert again.clock.train_exp_counter == 2
    last = make("diagonal", tmp_path)
    assert_same(expected, result(last, script(last, n_experiences=3)))


class Counts(SupervisedPlugin):
    """A user's plugin without state of its own."""

    begun = 0

    def before_training_exp(self, strategy, **kwargs):
        Counts.begun += 1


def test_finished_calls_do_nothing(tmp_path, capsys):
    from avalanche.logging import InteractiveLogger

    def new():
        torch.manual_seed(0)
        model = mlp()
        return Naive(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), 1e-2),
            train_mb_size=64,
            eval_mb_size=256,
            plugins=[Counts(), CheckpointPlugin(tmp_path)],
            evaluator=EvaluationPlugin(
                metrics.accuracy_metrics(stream=True), loggers=[InteractiveLogger()]
            ),
        )

    Counts.begun = 0
    returned = script(new(), stop_after=3)
    assert Counts.begun == 2
    capsys.readouterr()
    assert_same(returned, script(new(), stop_after=3))
    assert Counts.begun == 2
    assert capsys.readouterr().out == ""
    script(new())
    assert Counts.begun == 3


def test_random_numbers_of_the_script_between_its_calls(tmp_path):
    def run(strategy, n_calls):
        drawn = []
        for experience in benchmark().train_stream[:3]:
            for call in (strategy.train, strategy.eval):
                if n_calls == 0:
                    return drawn
                n_calls -= 1
                call(experience)
                drawn.append((torch.rand(()).item(), np.random.rand(), random.random()))
        return drawn

    np.random.seed(1)
    random.seed(1)
    expected = run(make("naive"), 6)
    np.random.seed(1)
    random.seed(1)
    run(make("naive", tmp_path), 3)
    np.random.seed(5)
    random.seed(5)
    drawn = run(make("naive", tmp_path), 6)
    # The last number before the interruption was drawn after the checkpoint, and is drawn again.
    assert drawn[2:] == expected[2:]


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_several_experiences_in_one_call(tmp_path, stop_after):
    """The script is interrupted in the middle of the call."""
    from tests.support.checkpoint_runs import Stop, Stopped

    stream = benchmark()

    def run(strategy):
        returned = [strategy.train([*stream.train_stream[:3]], eval_streams=[stream.test_stream])]
        return [*returned, strategy.eval(stream.test_stream)]

    def new(folder, n):
        strategy = make("diagonal", folder)
        strategy.plugins.append(Stop("after_training_iteration", n))
        return strategy

    undisturbed = new(None, 1000)
    expected = result(undisturbed, run(undisturbed))
    iterations = -(-len(stream.train_stream[0].dataset) // 64)
    with pytest.raises(Stopped):
        run(new(tmp_path, iterations * stop_after + 2))
    strategy = new(tmp_path, 1000)
    assert_same(expected, result(strategy, run(strategy)))
    again = new(tmp_path, 1000)
    assert_same(expected, result(again, run(again)))


@pytest.mark.parametrize("eval_every", [0, 1])
@pytest.mark.parametrize("method", ["diagonal", "hypernet", "growing"])
def test_evaluations_in_the_middle_of_training(tmp_path, eval_every, method):
    stream = benchmark(multi_task=method != "growing")

    def run(strategy, n):
        return [
            strategy.train(e, eval_streams=[stream.test_stream[:4]])
            for e in stream.train_stream[:n]
        ]

    def new(folder=None):
        strategy = make(method, folder, epochs=2)
        periodic = strategy.plugins[-2]
        periodic.eval_every, periodic.do_initial = eval_every, True
        return strategy

    undisturbed = new()
    expected = result(undisturbed, run(undisturbed, 3))
    for n in (1, 2):
        run(new(tmp_path), n)
    strategy = new(tmp_path)
    assert_same(expected, result(strategy, run(strategy, 3)))


def test_a_script_that_begins_with_an_evaluation(tmp_path):
    stream = benchmark()

    def run(strategy, n):
        returned = [strategy.eval(stream.test_stream)]
        returned += [strategy.train(e) for e in stream.train_stream[:n]]
        return [*returned, strategy.eval(stream.test_stream)]

    undisturbed = make("diagonal")
    expected = result(undisturbed, run(undisturbed, 1))
    strategy = make("diagonal", tmp_path)
    strategy.eval(stream.test_stream)
    for _ in range(2):
        strategy = make("diagonal", tmp_path)
        assert_same(expected, result(strategy, run(strategy, 1)))


METRICS = {
    "accuracy": metrics.accuracy_metrics,
    "loss": metrics.loss_metrics,
    "forgetting": metrics.forgetting_metrics,
    "backward transfer": metrics.bwt_metrics,
    "forward transfer": metrics.forward_transfer_metrics,
    "class accuracy": metrics.class_accuracy_metrics,
    "top k": metrics.topk_acc_metrics,
    "AMCA": metrics.amca_metrics,
    "task inference": task_inference_metrics,
}
ARGUMENTS = {
    "forgetting": {"experience": True, "stream": True},
    "backward transfer": {"experience": True, "stream": True},
    "forward transfer": {"experience": True, "stream": True},
    "AMCA": {},
    "task inference": {"experience": True, "stream": True},
    "top k": {"top_k": 1, "epoch": True, "experience": True, "stream": True},
}
EVERYWHERE = {
    "minibatch": True,
    "epoch": True,
    "epoch_running": True,
    "experience": True,
    "stream": True,
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_avalanche(tmp_path, name):
    stream = benchmark()

    def new(folder=None):
        torch.manual_seed(0)
        options = Options([] if folder is None else [CheckpointPlugin(folder)])
        if name == "task inference":
            options.plugins.append(TaskInferencePlugin())
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        made = METRICS[name](**ARGUMENTS.get(name, EVERYWHERE))
        evaluator = EvaluationPlugin(made, loggers=[])
        others = {**options(), "evaluator": evaluator, "eval_every": 0}
        return Naive(model=model, optimizer=optimizer, **others)

    def run(strategy, n):
        returned = []
        for experience in stream.train_stream[:n]:
            returned.append(strategy.train(experience, eval_streams=[stream.test_stream[:3]]))
            returned.append(strategy.eval(stream.test_stream[:3]))
        return returned

    undisturbed = new()
    expected = result(undisturbed, run(undisturbed, 2))
    run(new(tmp_path), 1)
    strategy = new(tmp_path)
    assert_same(expected, result(strategy, run(strategy, 2)))
