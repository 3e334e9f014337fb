import io

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import CSVLogger, TensorboardLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.func import functional_call

from avalanche_hnet import EWC, FixedTarget, Jacobian, ValuePreserving
from avalanche_hnet.core.regularizers import Penalty
from avalanche_hnet.strategies.hypernet_log import gradient_norm, statistics
from tests.support.hypernets import hyper_model, learner
from tests.support.streams import task_stream


def parameter(gradient):
    found = torch.nn.Parameter(torch.zeros(len(gradient)))
    found.grad = torch.tensor(gradient)
    return found


def test_losses_norms_and_cosine():
    weight, bias = parameter([3.0, 0.0]), parameter([4.0])
    step = {weight: torch.tensor([1.0, 2.0]), bias: torch.tensor([2.0])}
    penalty = Penalty(torch.tensor(0.25), {"weight": torch.tensor([0.0, 2.0])}, {})
    values = statistics(torch.tensor([1.5]), torch.tensor(0.5), step, {"weight": weight}, penalty)
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {
            "TaskLoss": 1.5,
            "Prior": 0.5,
            "Regularizer": 0.25,
            "Loss": 1.75,
            "StepNorm": 3.0,
            "RegularizerGradientNorm": 2.0,
            # Of the parameters that are regularised alone.
            "RegularizerStepCosine": 4 / (2 * 5**0.5),
        }
    )


def test_without_regulariser_and_without_gradients():
    weight = torch.nn.Parameter(torch.zeros(2))
    values = statistics(torch.tensor([1.5]), None, {}, {}, None)
    assert {name: value.item() for name, value in values.items()} == {
        "TaskLoss": 1.5,
        "Regularizer": 0.0,
        "Loss": 1.5,
        "StepNorm": 0.0,
    }
    assert gradient_norm([weight]) == 0
    assert gradient_norm([weight, parameter([3.0, 0.0]), parameter([4.0])]) == 5


def test_there_is_no_cosine_with_nothing():
    weight = parameter([1.0])
    penalty = Penalty(torch.tensor(0.0), {"weight": torch.zeros(1)}, {})
    values = statistics(
        torch.tensor(1.0), None, {weight: torch.ones(1)}, {"weight": weight}, penalty
    )
    assert "RegularizerStepCosine" not in values
    assert values["RegularizerGradientNorm"] == 0


BETA, LR, MOMENTUM = 0.5, 0.05, 0.9


LOSSES = {"TaskLoss", "Regularizer", "Loss", "StepNorm", "GradientNorm"}


OF_REGULARIZER = {"RegularizerGradientNorm", "RegularizerStepCosine"}


class Watch(SupervisedPlugin):
    """Recomputes from θ's gradients and steps what is published, at every iteration."""

    def __init__(self, lookahead):
        super().__init__()
        self.lookahead = lookahead
        self.found = []
        self.weights, self.velocity = [], {}

    def before_training_exp(self, strategy, **kwargs):
        net = strategy.model.hypernetwork
        self.theta = net.shared_parameters()
        self.protected = list(range(strategy.clock.train_exp_counter))
        self.targets = net(self.protected).detach() if self.protected else None

    def before_backward(self, strategy, **kwargs):
        theta, net = [*self.theta.values()], strategy.model.hypernetwork
        self.task = torch.autograd.grad(strategy.loss, theta, retain_graph=True)
        momentum = 0 if self.lookahead == "sgd" else MOMENTUM
        self.step = [
            -LR * (momentum * self.velocity.get(n, 0) + g)
            for n, g in zip(self.theta, self.task, strict=True)
        ]
        self.penalty = 0.0
        if self.protected:
            moved = dict(self.theta)
            if self.lookahead:
                moved = {n: p + d for (n, p), d in zip(moved.items(), self.step, strict=True)}
            weights = functional_call(net, moved, (self.protected,))
            self.penalty = BETA / len(self.protected) * (weights - self.targets).square().sum()

    def after_backward(self, strategy, **kwargs):
        full = [p.grad for p in self.theta.values()]
        own, step = flat([f - t for f, t in zip(full, self.task, strict=True)]), flat(self.step)
        loss = strategy.loss.item()
        self.found.append(
            {
                "TaskLoss": loss,
                "Regularizer": float(self.penalty),
                "Loss": loss + float(self.penalty),
                "StepNorm": step.norm().item(),
                "GradientNorm": flat(full).norm().item(),
                "RegularizerGradientNorm": own.norm().item(),
                "RegularizerStepCosine": (own @ step / (own.norm() * step.norm())).item(),
            }
        )
        for n, f in zip(self.theta, full, strict=True):
            self.velocity[n] = MOMENTUM * self.velocity.get(n, 0) + f

    def after_training_exp(self, strategy, **kwargs):
        net = strategy.model.hypernetwork
        self.weights.append(net(list(range(net.n_tasks))).detach())


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def events_of(tmp_path, model, regularizer, *plugins, labels=(0, 1, 2), others=(), **options):
    logger = TensorboardLogger(tmp_path / "tb")
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, stream=True), loggers=[logger, *others]
    )
    strategy = learner(
        model,
        regularizer,
        *plugins,
        optimizer=torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM),
        evaluator=evaluator,
        **options,
    )
    benchmark = task_stream(len(labels), task_labels=list(labels))
    for experience in benchmark.train_stream:  # 8 iterations each
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    logger.writer.flush()
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    names = [n for n in events.Tags()["scalars"] if n.startswith("Hypernet/")]
    return {n.removeprefix("Hypernet/"): events.Scalars(n) for n in names}, strategy


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("lookahead", "differentiable"),
    [("optimizer", False), ("sgd", False), (None, False), ("optimizer", True), ("sgd", True)],
)
def test_every_series_equals_an_independent_computation(tmp_path, lookahead, differentiable):
    model, watch = hyper_model(), Watch(lookahead)
    regularizer = FixedTarget(BETA, lookahead=lookahead, differentiable_lookahead=differentiable)
    series, _ = events_of(tmp_path, model, regularizer, watch, log_every=3)
    assert {n for n in series if "/" not in n} == LOSSES | OF_REGULARIZER
    logged = [0, 3, 6, 8, 11, 14, 16, 19, 22]
    for name in LOSSES:
        assert [e.step for e in series[name]] == logged
    for name in LOSSES | OF_REGULARIZER:
        for event in series[name]:
            expected = watch.found[event.step][name]
            assert event.value == pytest.approx(expected, rel=1e-5, abs=1e-9), (name, event.step)
    in_later_experiences = [n for n in logged if n >= 8]
    assert [e.step for e in series["RegularizerGradientNorm"]] == in_later_experiences
    # Without a look ahead there is no gradient, and so no cosine, before the first step.
    with_gradient = in_later_experiences if lookahead else [11, 14, 19, 22]
    assert [e.step for e in series["RegularizerStepCosine"]] == with_gradient
    assert all(e.value == 0 for e in series["Regularizer"][:3])
    assert all(e.value > 0 for e in series["Regularizer"][4:6])


@pytest.mark.parametrize("cls", [FixedTarget, ValuePreserving, Jacobian, EWC])
def test_losses_add_up(tmp_path, cls):
    series, _ = events_of(tmp_path, hyper_model(), cls(0.5), log_every=1)
    assert len(series["Loss"]) == 24
    for task, own, full in zip(
        *(series[n] for n in ("TaskLoss", "Regularizer", "Loss")), strict=True
    ):
        assert task.value + own.value == pytest.approx(full.value, rel=1e-6)
    assert any(e.value > 0 for e in series["Regularizer"])


def test_weights_moved_of_each_task(tmp_path):
    watch = Watch("optimizer")
    series, strategy = events_of(tmp_path, hyper_model(), FixedTarget(0.0), watch, labels=(7, 3, 7))
    assert {n for n in series if "/" in n} == {"WeightsMoved/Task007", "WeightsMoved/Task003"}

    def moved(after, task, learned):
        start = watch.weights[learned][task]
        return ((watch.weights[after][task] - start).norm() / start.norm()).item()

    # Task 7 comes back in the third experience, and is learned anew then.
    expected = {"Task007": [0.0, moved(1, 0, 0), 0.0], "Task003": [0.0, moved(2, 1, 1)]}
    for name, distances in expected.items():
        found = [e.value for e in series[f"WeightsMoved/{name}"]]
        assert found == pytest.approx(distances, rel=1e-5)
    assert expected["Task007"][1] > 0.01
    assert [e.step for e in series["WeightsMoved/Task007"]] == [8, 16, 24]
    assert "Hypernet/WeightsMoved/Task003" in strategy.evaluator.get_last_metrics()


def test_without_regulariser(tmp_path):
    series, _ = events_of(tmp_path, hyper_model(), None, log_every=4)
    assert {n for n in series if "/" not in n} == LOSSES
    assert [e.step for e in series["Loss"]] == [0, 4, 8, 12, 16, 20]
    assert all(e.value == 0 for e in series["Regularizer"])
    assert all(e.value > 0 for e in series["StepNorm"])


def test_publishing_changes_nothing():
    """Neither random numbers nor weights."""
    stream, weights = task_stream(2).train_stream, []
    for log_every in (1, 1000):
        torch.manual_seed(0)
        model = hyper_model()
        strategy = learner(model, FixedTarget(lookahead=None), log_every=log_every)
        for experience in stream:
            strategy.train(experience)
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_clipped_gradients_are_published(tmp_path):
    series, _ = events_of(tmp_path, hyper_model(), FixedTarget(), log_every=1, clip_grad_norm=0.01)
    assert all(e.value <= 0.01 * (1 + 1e-5) for e in series["GradientNorm"])


def test_other_loggers(tmp_path):
    text = io.StringIO()
    others = [CSVLogger(tmp_path / "csv"), TextLogger(text)]
    _, strategy = events_of(tmp_path, hyper_model(), FixedTarget(), others=others)
    printed = text.getvalue()
    assert "Hypernet/TaskLoss = " in printed
    assert "Hypernet/WeightsMoved/Task001 = " in printed
    assert (tmp_path / "csv" / "eval_results.csv").read_text().count("\n") > 3
    found = strategy.evaluator.get_all_metrics()
    assert found["Hypernet/Loss"][0] == [0, 8, 16]  # every 50 iterations of an experience
