import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import EagerCLStream, split_online_stream, with_task_labels
from avalanche.benchmarks.scenarios.supervised import with_classes_timeline
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import JointTraining
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    LwFPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)
from torch import nn

from avalanche_hnet import PriorEWCPlugin, TaskStatistics, TaskStatisticsPlugin
from tests.support.hypernets import hyper_model
from tests.support.models import MultiHead
from tests.support.oracles import loop_fisher
from tests.support.strategies import naive
from tests.support.streams import regression_stream, two_tasks_in_one
from tests.support.task_statistics import (
    EXACT,
    Heads,
    columns,
    one_head,
    shifted,
    statistics_of,
    with_heads,
)

pytestmark = pytest.mark.usefixtures("float64")


LR = 0.1


class Loop:
    """Training and evaluation in plain PyTorch, with the statistics of each key by hand."""

    def __init__(self, model):
        layers = dict(model.named_modules())
        self.layer, self.norm = ("layer", "norm") if isinstance(model, Heads) else ("0", "1")
        self.weights = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.start = self.copied(layers[self.norm])
        self.multi_head = isinstance(model, Heads)
        self.statistics = {}

    @staticmethod
    def copied(norm):
        return [norm.running_mean.clone(), norm.running_var.clone(), int(norm.num_batches_tracked)]

    def outputs(self, weights, x, label, mean, variance):
        hidden = x @ weights[f"{self.layer}.weight"].T + weights[f"{self.layer}.bias"]
        if mean is None:
            mean, variance = hidden.mean(0), hidden.var(0, correction=0)
        hidden = (hidden - mean) / (variance + 1e-5).sqrt()
        hidden = torch.tanh(hidden * weights[f"{self.norm}.weight"] + weights[f"{self.norm}.bias"])
        head = f"head.classifiers.{label}.classifier" if self.multi_head else "3"
        return hidden @ weights[f"{head}.weight"].T + weights[f"{head}.bias"]

    def train(self, experience, key, label, epochs=2, batch_size=5, lr=LR):
        x, y = columns(experience)
        own = self.statistics.setdefault(key, [self.start[0], self.start[1], self.start[2]])
        for _ in range(epochs):
            for start in range(0, len(x), batch_size):
                rows = slice(start, start + batch_size)
                hidden = x[rows] @ self.weights[f"{self.layer}.weight"].T
                hidden = hidden + self.weights[f"{self.layer}.bias"]
                own[0] = 0.9 * own[0] + 0.1 * hidden.mean(0)
                own[1] = 0.9 * own[1] + 0.1 * hidden.var(0)
                own[2] += 1
                leaves = {n: w.clone().requires_grad_() for n, w in self.weights.items()}
                loss = F.cross_entropy(self.outputs(leaves, x[rows], label, None, None), y[rows])
                found = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True)
                for n, g in zip(leaves, found, strict=True):
                    if g is not None:
                        self.weights[n] = self.weights[n] - lr * g

    def predict(self, x, key, label):
        mean, variance, _ = self.statistics[key]
        return self.outputs(self.weights, x, label, mean, variance)


class Outputs(SupervisedPlugin):
    """What the strategy computes in evaluation, by number of the experience."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def before_eval_exp(self, strategy, **kwargs):
        self.found[strategy.experience.current_experience] = []

    def after_eval_forward(self, strategy, **kwargs):
        self.found[strategy.experience.current_experience].append(strategy.mb_output.clone())

    def __getitem__(self, number):
        return torch.cat(self.found[number])


EVALUATIONS = [
    {},
    {"eval_every": 1},
    {"eval_every": 0},
    {"eval_every": 2, "peval_mode": "iteration"},
]


@pytest.mark.parametrize("options", EVALUATIONS, ids=str)
@pytest.mark.parametrize("by", ["task", "experience"])
def test_buffers_and_outputs_equal_a_plain_loop(options, by):
    """The first task comes back; all tasks are evaluated in the middle of training."""
    labels = [3, 1, 3, 0] if by == "task" else [0, 0, 0]
    benchmark = shifted(labels)
    model = with_heads(Heads(), benchmark) if by == "task" else one_head()
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    norm.running_mean.fill_(0.3)
    norm.running_var.fill_(2.0)
    norm.num_batches_tracked.fill_(7)
    loop, plugin, outputs = Loop(model), TaskStatisticsPlugin(by), Outputs()
    strategy = naive(model, plugin, outputs, **options)
    for number, experience in enumerate(benchmark.train_stream):
        key, label = (labels[number], labels[number]) if by == "task" else (number, 0)
        strategy.train(experience, eval_streams=[benchmark.test_stream], shuffle=False)
        loop.train(experience, key, label)

        live = statistics_of(model)
        strategy.eval(benchmark.test_stream)
        torch.testing.assert_close(statistics_of(model), live, rtol=0, atol=0)
        torch.testing.assert_close(live[:2], loop.statistics[key][:2], **EXACT)
        assert live[2] == loop.statistics[key][2]
        assert set(plugin.statistics.task_labels) == set(loop.statistics)
        assert plugin.statistics.latest == key
        for earlier, own in loop.statistics.items():
            with plugin.statistics.using(model, earlier):
                torch.testing.assert_close(statistics_of(model)[:2], own[:2], **EXACT)
        for tested, experience in enumerate(benchmark.test_stream):
            tested_key = labels[tested] if by == "task" else tested
            if tested_key in loop.statistics:
                x, _ = columns(experience)
                expected = loop.predict(x, tested_key, labels[tested])
                torch.testing.assert_close(outputs[tested], expected, **EXACT)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), loop.weights[name], **EXACT)


@pytest.mark.parametrize("with_plugin", [True, False])
def test_outputs_of_earlier_tasks_do_not_change_with_frozen_weights(with_plugin):
    benchmark = shifted([0, 1, 2])
    model = with_heads(Heads(), benchmark)
    model.requires_grad_(False)
    model.norm.bias.requires_grad_(True)  # the optimizer needs a parameter; its rate is zero
    outputs, found = Outputs(), []
    plugins = [TaskStatisticsPlugin()] if with_plugin else []
    strategy = naive(model, *plugins, outputs, lr=0.0)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        found.append([outputs[number] for number in range(3)])
    for task, later in ((0, 1), (0, 2), (1, 2)):
        assert torch.equal(found[later][task], found[task][task]) == with_plugin


def accuracy(strategy, stream, tasks):
    results = strategy.eval(stream)
    prefix = "Top1_Acc_Exp/eval_phase/test_stream"
    return [results[f"{prefix}/Task{t:03d}/Exp{t:03d}"] for t in tasks]


def test_statistics_are_what_earlier_tasks_are_forgotten_by():
    accuracies = []
    for plugins in ([], [TaskStatisticsPlugin()]):
        torch.manual_seed(0)
        benchmark = shifted([0, 1, 2], n_samples=60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = EvaluationPlugin(accuracy_metrics(experience=True))
        strategy = naive(
            Heads(), PriorEWCPlugin(10.0), *plugins, evaluator=evaluator, lr=0.03, train_epochs=10
        )
        for experience in benchmark.train_stream:
            strategy.train(experience)
        accuracies.append(sum(accuracy(strategy, benchmark.test_stream, (0, 1))) / 2)
    assert accuracies[1] > accuracies[0] + 0.1


@pytest.mark.parametrize("first", [True, False])
def test_fisher_is_that_of_the_tasks_own_statistics(first):
    """In either order of the plugins, also when an evaluation comes before."""
    benchmark = shifted([0, 1])
    model, ours, ewc = with_heads(Heads(), benchmark), TaskStatisticsPlugin(), PriorEWCPlugin(2.0)
    strategy = naive(model, *((ours, ewc) if first else (ewc, ours)), eval_every=1)
    expected = {}
    for label, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[benchmark.test_stream], shuffle=False)
        x, y = columns(experience)
        with ours.statistics.using(model, label):
            fisher = loop_fisher(model, x, y, F.cross_entropy, torch.full((len(x),), label))
        for name, values in fisher.items():
            expected[name] = expected.get(name, 1.0) + len(x) * values
    for name, precision in ewc.posterior.precision.items():
        torch.testing.assert_close(precision, expected[name], rtol=1e-9, atol=1e-12)


def test_order_of_plugins_does_not_matter():
    found = []
    for order in (1, -1):
        torch.manual_seed(0)
        benchmark = shifted([0, 1, 0])
        model, ours = with_heads(Heads(), benchmark), TaskStatisticsPlugin()
        strategy = naive(model, *(ours, PriorEWCPlugin(2.0))[::order], eval_every=1)
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[benchmark.test_stream], shuffle=False)
        found.append([model.state_dict(), ours.statistics.state_dict()["tasks"]])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "other", [lambda: EWCPlugin(10.0), lambda: LwFPlugin(1.0, 2.0), lambda: PriorEWCPlugin()]
)
def test_works_with_other_plugins(other):
    benchmark = shifted([0, 1, 2])
    model, ours, outputs = with_heads(Heads(), benchmark), TaskStatisticsPlugin(), Outputs()
    strategy = naive(model, other(), ours, outputs, eval_every=1)
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
    strategy.eval(benchmark.test_stream)
    counts = [own["norm.num_batches_tracked"] for own in ours.statistics._tasks.values()]
    assert len(counts) == 3
    for label, experience in enumerate(benchmark.test_stream):
        with ours.statistics.using(model.eval(), label):
            expected = model(columns(experience)[0], torch.full((15,), label))
        torch.testing.assert_close(outputs[label], expected.detach(), **EXACT)
    if isinstance(strategy.plugins[0], PriorEWCPlugin):
        assert counts == [6, 6, 6]  # the Fisher updates nothing


def test_tasks_never_trained_on_are_evaluated_with_the_latest():
    benchmark = shifted([0, 1, 2])
    model, outputs, ours = with_heads(Heads(), benchmark), Outputs(), TaskStatisticsPlugin()
    strategy = naive(model, ours, outputs)

    def expected(statistics):
        x, _ = columns(benchmark.test_stream[2])
        with torch.no_grad(), ours.statistics.using(model.eval(), statistics):
            return model(x, torch.full((15,), 2))

    strategy.eval(benchmark.test_stream)  # before any training, with the model's own
    with torch.no_grad():
        own = model.eval()(columns(benchmark.test_stream[2])[0], torch.full((15,), 2))
    assert torch.equal(outputs[2], own)
    for latest in (0, 1, 0):
        strategy.train(benchmark.train_stream[latest])
        strategy.eval(benchmark.test_stream)
        assert torch.equal(outputs[2], expected(latest))
        assert not torch.allclose(outputs[2], own)
    assert not torch.allclose(expected(0), expected(1))


@pytest.mark.parametrize("boundaries", [True, False])
@pytest.mark.parametrize("kind", ["task", "experience", "task with labels"])
def test_pieces_of_an_online_stream_share_one_set(kind, boundaries):
    """Pieces have task labels only if they are given some; otherwise the experience has them."""
    benchmark = shifted([0, 0]) if kind == "experience" else shifted([0, 1])
    labelled = kind == "task with labels"
    online = split_online_stream(
        benchmark.train_stream, 5, shuffle=False, access_task_boundaries=boundaries
    )
    if labelled:
        online = with_task_labels(with_classes_timeline(EagerCLStream("train", [*online])))
    model = with_heads(Heads(), benchmark) if labelled else one_head()
    loop, ours, outputs = Loop(model), TaskStatisticsPlugin(kind.split()[0]), Outputs()
    strategy = naive(model, ours, outputs, train_epochs=1)
    for number, piece in enumerate(online):
        assert hasattr(piece, "task_labels") == labelled
        strategy.train(piece, eval_streams=[], shuffle=False)
        strategy.eval(benchmark.test_stream)
        key = number // 3
        loop.train(piece, key, key, epochs=1)
        torch.testing.assert_close(statistics_of(model)[:2], loop.statistics[key][:2], **EXACT)
        for tested in loop.statistics:
            x, _ = columns(benchmark.test_stream[tested])
            torch.testing.assert_close(outputs[tested], loop.predict(x, tested, tested), **EXACT)
    assert ours.statistics.task_labels == (0, 1)


def test_evaluation_of_pieces_of_an_online_stream():
    benchmark = shifted([0, 0])
    ours = TaskStatisticsPlugin("experience")
    strategy = naive(one_head(), ours)
    strategy.train(benchmark.train_stream)

    class Check(SupervisedPlugin):
        used = ()

        def after_eval_forward(self, strategy, **kwargs):
            self.used = (*self.used, int(statistics_of(strategy.model)[2]))

    ours.statistics._tasks[0]["1.num_batches_tracked"] = torch.tensor(100)
    strategy.plugins.insert(0, Check())
    strategy.eval(split_online_stream(benchmark.train_stream, 8, shuffle=False))
    assert strategy.plugins[0].used == (100, 100, 6, 6)


def test_training_goes_on_from_saved_states(tmp_path):
    benchmark = shifted([0, 1, 0, 2])
    model, ours = with_heads(Heads(), benchmark), TaskStatisticsPlugin()
    strategy = naive(model, ours)
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience, shuffle=False)
    file = tmp_path / "state.pt"
    torch.save([model.state_dict(), ours.statistics.state_dict()], file)

    weights, statistics = torch.load(file, weights_only=True)
    restored, fresh = with_heads(Heads(), benchmark), TaskStatisticsPlugin()
    restored.load_state_dict(weights)
    fresh.statistics.load_state_dict(statistics)
    outputs = [Outputs(), Outputs()]
    learners = [strategy, naive(restored, fresh)]
    for learner, watch in zip(learners, outputs, strict=True):
        learner.plugins.insert(0, watch)
        learner.eval(benchmark.test_stream)
    for number in range(4):
        assert torch.equal(outputs[0][number], outputs[1][number])
    assert not torch.equal(
        statistics["tasks"][0]["norm.running_mean"], statistics["tasks"][1]["norm.running_mean"]
    )
    for learner in learners:
        for experience in benchmark.train_stream[2:]:
            learner.train(experience, shuffle=False)
    torch.testing.assert_close(restored.state_dict(), model.state_dict(), rtol=0, atol=0)
    found, expected = fresh.statistics.state_dict(), ours.statistics.state_dict()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found["latest"] == 2


def test_saved_states_do_not_change_with_later_training():
    benchmark = shifted([0, 1])
    model, ours = with_heads(Heads(), benchmark), TaskStatisticsPlugin()
    strategy = naive(model, ours)
    strategy.train(benchmark.train_stream[0])
    state = ours.statistics.state_dict()
    kept = copy.deepcopy(state)
    other = TaskStatistics()
    other.load_state_dict(state)
    strategy.train(benchmark.train_stream[0])
    torch.testing.assert_close(state, kept, rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict(), kept, rtol=0, atol=0)
    assert not torch.equal(
        ours.statistics.state_dict()["tasks"][0]["norm.running_mean"],
        kept["tasks"][0]["norm.running_mean"],
    )


class Break(SupervisedPlugin):
    """Breaks off an evaluation or a training with an exception."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def after_eval_forward(self, strategy, **kwargs):
        if self.where == "eval" and strategy.experience.current_experience == 0:
            raise KeyboardInterrupt

    def after_update(self, strategy, **kwargs):
        if self.where == "train" and strategy.clock.train_exp_iterations == 2:
            raise KeyboardInterrupt


def test_evaluation_that_is_broken_off_leaves_no_trace():
    benchmark = shifted([0, 1])
    model, ours = with_heads(Heads(), benchmark), TaskStatisticsPlugin()
    strategy = naive(model, ours)
    strategy.train(benchmark.train_stream)
    live = statistics_of(model)
    for go_on in (lambda: strategy.eval([]), lambda: strategy.train([])):
        strategy.plugins.insert(0, Break("eval"))
        with pytest.raises(KeyboardInterrupt):
            strategy.eval(benchmark.test_stream)
        del strategy.plugins[0]
        assert not torch.equal(statistics_of(model)[0], live[0])
        go_on()
        torch.testing.assert_close(statistics_of(model), live, rtol=0, atol=0)


def test_evaluation_that_is_broken_off_in_the_midst_of_training():
    benchmark = shifted([0, 1])
    model, ours = with_heads(Heads(), benchmark), TaskStatisticsPlugin()
    strategy = naive(model, ours, eval_every=1)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy.plugins.insert(0, Break("eval"))
    strategy.plugins[-2].do_initial = False
    with pytest.raises(KeyboardInterrupt):
        strategy.train(benchmark.train_stream[1], eval_streams=[benchmark.test_stream])
    del strategy.plugins[0]
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    counts = [own["norm.num_batches_tracked"].item() for own in ours.statistics._tasks.values()]
    assert counts == [12, 3]


def test_training_that_is_broken_off_keeps_what_it_had_learned():
    benchmark = shifted([0, 1])
    model, ours = with_heads(Heads(), benchmark), TaskStatisticsPlugin()
    strategy = naive(model, Break("train"), ours)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(benchmark.train_stream[0])
    live = statistics_of(model)
    assert live[2] == 3
    del strategy.plugins[0]
    strategy.train(benchmark.train_stream[1])
    with ours.statistics.using(model, 0):
        torch.testing.assert_close(statistics_of(model), live, rtol=0, atol=0)


# What the plugin refuses.


def refused(strategy, experiences, message):
    before = copy.deepcopy(strategy.model.state_dict())
    with pytest.raises(ValueError, match=message):
        strategy.train(experiences)
    for name, tensor in before.items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(strategy.model.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("labels", "by", "warned"),
    [
        ([0, 0, 0], "task", 1),
        ([0, 1, 0], "task", 0),
        ([0, 0, 0], "experience", 0),
    ],
)
def test_one_task_label_for_all_experiences_is_warned_of_once(labels, by, warned):
    strategy = naive(one_head(), TaskStatisticsPlugin(by=by))
    stream = shifted(labels).train_stream
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for experience in (stream[0], *stream):  # the first one twice
            strategy.train(experience)
    found = [w for w in caught if "share one set of running statistics" in str(w.message)]
    assert len(found) == warned
    assert all("by='experience'" in str(w.message) for w in found)


def test_other_keys_are_refused():
    with pytest.raises(ValueError, match=r"by must be one of \('task', 'experience'\), got 'exp'"):
        TaskStatisticsPlugin(by="exp")


def test_models_without_statistics_are_refused():
    strategy = naive(MultiHead(n_in=4), TaskStatisticsPlugin())
    refused(strategy, shifted([0]).train_stream[0], "MultiHead has no layer with running statist")


def test_hypernetworks_are_refused():
    target = one_head()
    strategy = naive(hyper_model(target), TaskStatisticsPlugin())
    refused(strategy, shifted([0]).train_stream[0], "HyperModel, which keeps the running stat")


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0]])
@pytest.mark.parametrize("by", ["task", "experience"])
def test_joint_training_is_refused(labels, by):
    stream = shifted(labels).train_stream
    model = with_heads(Heads(), shifted(labels))
    strategy = naive(model, TaskStatisticsPlugin(by), strategy=JointTraining)
    keys = sorted(set(labels)) if by == "task" else [0, 1, 2]
    message = rf"JointTraining, whose batches mix samples of all {by}s \[{str(keys)[1:-1]}\]"
    refused(strategy, stream, message)


def test_experiences_of_several_tasks_are_refused_in_training_and_evaluation():
    benchmark = shifted([0, 1])
    both = two_tasks_in_one(*benchmark.train_stream)
    model = with_heads(Heads(), benchmark)
    strategy = naive(model, TaskStatisticsPlugin())
    refused(strategy, both, r"of one task each, but this one has the task labels \[0, 1\]")
    strategy.train(benchmark.train_stream)
    live = statistics_of(model)
    with pytest.raises(ValueError, match=r"has the task labels \[0, 1\]"):
        strategy.eval(both)
    torch.testing.assert_close(statistics_of(model), live, rtol=0, atol=0)


def test_replay_is_refused():
    benchmark = shifted([0, 1])
    strategy = naive(with_heads(Heads(), benchmark), TaskStatisticsPlugin(), ReplayPlugin(10))
    strategy.train(benchmark.train_stream[0])
    weight = strategy.model.layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"samples of the tasks \[0, 1\].* go with replay"):
        strategy.train(benchmark.train_stream[1])
    assert torch.equal(strategy.model.layer.weight, weight)


def test_experiences_without_task_labels_are_refused():
    stream = regression_stream([(torch.randn(8, 4), torch.randn(8, 2))]).train_stream
    options = {"criterion": nn.MSELoss()}
    strategy = naive(one_head(), TaskStatisticsPlugin(), **options)
    refused(strategy, stream[0], "the experience has no task_labels.* by='experience'")
    naive(one_head(), TaskStatisticsPlugin("experience"), **options).train(stream[0])


class Statistics(SupervisedPlugin):
    """The first layer's running mean at the end of each epoch, and in each evaluation."""

    def __init__(self):
        super().__init__()
        self.trained, self.evaluated = [], []

    def after_training_epoch(self, strategy, **kwargs):
        self.trained.append(self.mean_of(strategy))

    def after_eval_forward(self, strategy, **kwargs):
        if strategy.clock.train_iterations > 0:
            self.evaluated.append(self.mean_of(strategy))

    @staticmethod
    def mean_of(strategy):
        return next(b for n, b in strategy.model.named_buffers() if "running_mean" in n).clone()


def test_evaluation_in_the_midst_of_training_has_the_statistics_so_far():
    benchmark, seen = shifted((0,)), Statistics()
    model = Heads()
    strategy = naive(
        model, TaskStatisticsPlugin(), seen, eval_every=1, train_epochs=3, eval_mb_size=100
    )
    strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream])
    assert len(seen.trained) == 3
    for trained, evaluated in zip(seen.trained, seen.evaluated, strict=False):
        torch.testing.assert_close(evaluated, trained, rtol=0, atol=0)
    assert not torch.equal(seen.trained[0], seen.trained[1])
