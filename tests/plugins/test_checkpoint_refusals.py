"""What cannot go on is refused by name: at the start, or where the script differs."""

import warnings

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.models import SimpleMLP, as_multitask
from avalanche.training import JointTraining, Naive
from avalanche.training.plugins import (
    EvaluationPlugin,
    LwFPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)

from avalanche_hnet import CheckpointPlugin, PriorEWC, register_checkpoint_state
from tests.support.checkpoint_runs import (
    Stop,
    Stopped,
    assert_same,
    benchmark,
    make,
    mlp,
    result,
    script,
)

pytestmark = pytest.mark.filterwarnings("ignore:No loggers", "ignore::DeprecationWarning")


def naive(folder, *plugins, model=None, strategy=Naive, lr=0.1, seed=0, **options):
    torch.manual_seed(seed)
    model = mlp() if model is None else model()
    optimizer = options.pop("optimizer", torch.optim.SGD)(model.parameters(), lr=lr)
    return strategy(
        model=model,
        optimizer=optimizer,
        plugins=[*plugins, CheckpointPlugin(folder)],
        evaluator=EvaluationPlugin(loggers=[]),
        **{"train_mb_size": 64, "eval_mb_size": 64, **options},
    )


class Remembers(SupervisedPlugin):
    """A user's plugin with a state that nobody knows of."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def after_training_exp(self, strategy, **kwargs):
        self.seen.append(strategy.experience.current_experience)


class HasProtocol(Remembers):
    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Registered(Remembers):
    pass


register_checkpoint_state(Registered)


@pytest.mark.parametrize(
    ("plugin", "name"),
    [
        (Remembers(), "the plugin Remembers is a .*Remembers, whose state is not known"),
        (ReplayPlugin(10), "the plugin ReplayPlugin, which keeps samples"),
        (LwFPlugin(), "the plugin LwFPlugin, which keeps copies of models"),
    ],
)
def test_a_plugin_whose_state_cannot_be_saved_is_named_at_the_start(tmp_path, plugin, name):
    strategy = naive(tmp_path / "run", plugin)
    before = {n: t.clone() for n, t in strategy.model.state_dict().items()}
    stream = benchmark()
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match=name):
        strategy.train(stream.train_stream[0])
    assert_same(before, strategy.model.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [HasProtocol, Registered])
def test_a_users_plugin(tmp_path, kind):
    script(naive(tmp_path, kind()), stop_after=4)
    plugin = kind()
    script(naive(tmp_path, plugin))
    assert plugin.seen == [0, 1, 2]


def test_a_users_metric_is_named(tmp_path):
    from avalanche.evaluation.metrics import StreamAccuracy

    class MyMetric(StreamAccuracy):
        pass

    model = mlp()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        plugins=[CheckpointPlugin(tmp_path)],
        evaluator=EvaluationPlugin(MyMetric(), loggers=[]),
    )
    with pytest.raises(ValueError, match=r"EvaluationPlugin.metrics.0 is a .*MyMetric, whose"):
        script(strategy)


def test_a_parameter_that_is_not_the_models(tmp_path):
    extra = torch.nn.Parameter(torch.zeros(3))
    strategy = naive(tmp_path)
    strategy.optimizer.add_param_group({"params": [extra]})
    with pytest.raises(ValueError, match=r"has 1 that are not its model's, of the shapes \[\(3,"):
        script(strategy)


def wide():
    return as_multitask(SimpleMLP(num_classes=2, input_size=64, hidden_size=30), "classifier")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"model": wide}, r"model.model.features.0.weight was .*\(20, 64\) and is .*\(30, 64\)"),
        ({"train_mb_size": 32}, "strategy.train_mb_size was 64 and is 32"),
        ({"train_epochs": 2}, "strategy.train_epochs was 1 and is 2"),
        ({"lr": 0.2}, r"optimizer.param_groups\[0\].lr was 0.1 and is 0.2"),
        ({"optimizer": torch.optim.Adam}, "optimizer was torch.optim.sgd.SGD and is .*Adam"),
        ({"criterion": torch.nn.MSELoss()}, r"criterion was CrossEntropyLoss\(\) and is MSELoss"),
        ({"eval_every": 0}, "strategy.eval_every was -1 and is 0"),
        ({"strategy": PriorEWC}, "strategy was .*Naive and is .*PriorEWC"),
    ],
)
def test_another_configuration_is_named(tmp_path, other, named):
    script(naive(tmp_path), stop_after=1)
    strategy = naive(tmp_path, **other)
    before = {n: t.clone() for n, t in strategy.model.state_dict().items()}
    with pytest.raises(ValueError, match=f"is another one: .*{named}"):
        script(strategy)
    assert_same(before, strategy.model.state_dict())


def test_another_option_of_a_plugin_is_named(tmp_path):
    def prior_ewc(ewc_lambda):
        return naive(tmp_path, strategy=PriorEWC, ewc_lambda=ewc_lambda, prior_variance=10.0)

    script(prior_ewc(1.0), stop_after=1)
    with pytest.raises(ValueError, match=r"plugins\[1\].ewc_lambda was 1.0 and is 2.0"):
        script(prior_ewc(2.0))


def test_another_version_is_named(tmp_path, monkeypatch):
    from avalanche_hnet.plugins.checkpointing import configuration

    script(naive(tmp_path), stop_after=1)
    monkeypatch.setattr(configuration, "version", lambda name: "0.0.1")
    with pytest.raises(ValueError, match=r"version of avalanche-hnet was .* and is 0.0.1"):
        script(naive(tmp_path))


def run_order(strategy, calls):
    stream = benchmark()
    for kind, numbers in calls:
        if kind == "train":
            strategy.train([stream.train_stream[n] for n in numbers])
        else:
            strategy.eval([stream.test_stream[n] for n in numbers])


@pytest.mark.parametrize(
    ("calls", "named"),
    [
        ([("eval", [0])], "call 0 of train and eval was train and is eval"),
        ([("train", [1])], "call 0 .*number 0 and is 1"),
        ([("train", [0]), ("eval", [0])], "call 1 .*had 2 experiences and has 1"),
        ([("train", [0]), ("eval", [0, 1, 2])], "call 1 .*had 2 experiences and has more"),
    ],
)
def test_a_script_that_differs_is_refused_at_the_call_that_differs(tmp_path, calls, named):
    run_order(naive(tmp_path), [("train", [0]), ("eval", [0, 1]), ("train", [1])])
    strategy = naive(tmp_path)
    with pytest.raises(ValueError, match=named):
        run_order(strategy, calls)
    with pytest.raises(ValueError, match="could not go on; make a new strategy"):
        run_order(strategy, calls)


def test_other_weights_at_the_start(tmp_path):
    script(naive(tmp_path), stop_after=1)
    with pytest.raises(ValueError, match=r"another run of this process.*a folder for each run"):
        script(naive(tmp_path, seed=1))


def test_a_script_without_a_seed_goes_on_with_a_warning(tmp_path, monkeypatch):
    """In another process."""
    from avalanche_hnet.plugins.checkpointing import run

    undisturbed = naive(tmp_path / "undisturbed")
    expected = result(undisturbed, script(undisturbed))
    script(naive(tmp_path / "run"), stop_after=1)
    monkeypatch.setattr(run, "_started", {})
    strategy = naive(tmp_path / "run", seed=1)
    with pytest.warns(UserWarning, match="started from other weights"):
        returned = script(strategy)
    assert_same(expected, result(strategy, returned))


def test_after_an_exception_nothing_is_written(tmp_path):
    strategy = naive(tmp_path, Stop("after_backward", 7))
    with pytest.raises(Stopped):
        script(strategy)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.warns(UserWarning, match="a call was broken off"):
        strategy.eval(benchmark().test_stream[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        strategy.plugins = [p for p in strategy.plugins if not isinstance(p, Stop)]
        strategy.train(benchmark().train_stream[1])
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_plugin_for_each_strategy(tmp_path):
    plugin = CheckpointPlugin(tmp_path)
    first, second = naive(tmp_path / "1"), naive(tmp_path / "2")
    first.plugins[0] = second.plugins[0] = plugin
    script(first, stop_after=1)
    with pytest.raises(ValueError, match="belongs to another strategy"):
        script(second, stop_after=1)
    with pytest.raises(ValueError, match="more than one CheckpointPlugin"):
        script(naive(tmp_path / "3", CheckpointPlugin(tmp_path / "4")))


def test_online_streams_and_joint_training(tmp_path):
    pieces = split_online_stream(benchmark().train_stream[:1], experience_size=50)
    with pytest.raises(ValueError, match="does not go with online streams"):
        naive(tmp_path / "1").train(next(iter(pieces)))
    strategy = naive(tmp_path / "2", strategy=JointTraining, criterion=torch.nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="does not go with JointTraining"):
        strategy.train(benchmark().train_stream)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ((3,), TypeError, "folder must be a path, got 3"),
        (("run", 0), ValueError, "every_iterations"),
        (("run", None, 0), ValueError, "keep"),
    ],
)
def test_arguments(arguments, error, named):
    with pytest.raises(error, match=named):
        CheckpointPlugin(*arguments)


def test_registering():
    with pytest.raises(TypeError, match="kind must be a class, got 3"):
        register_checkpoint_state(3)
    with pytest.raises(ValueError, match="save and load must be given together"):
        register_checkpoint_state(Remembers, save=vars)


def test_all_damaged(tmp_path):
    undisturbed = make("naive")
    expected = result(undisturbed, script(undisturbed))
    script(make("naive", tmp_path), stop_after=3)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    strategy = make("naive", tmp_path)
    with pytest.warns(UserWarning, match="the checkpoint before it is used"):
        returned = script(strategy)
    assert_same(expected, result(strategy, returned))
