"""The penalties in implicit steps, within real strategies."""

import math

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import LRSchedulerPlugin, ReplayPlugin, SupervisedPlugin
from torch import nn

from avalanche_hnet import PriorEWCPlugin
from tests.support.models import Incremental, MultiHead, mlp
from tests.support.strategies import Recorder, naive, run
from tests.support.streams import task_stream

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1),
    "SGD, momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 1e-2),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, 1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, 1e-2),
    "Adamax": lambda p: torch.optim.Adamax(p, 1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
}


@pytest.mark.parametrize("ewc_lambda", [1.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("step", ["implicit", "auto"])
def test_no_strength_diverges(step, name, ewc_lambda):
    stream, model = task_stream(3, n_samples=40).train_stream, MultiHead()
    plugin = PriorEWCPlugin(ewc_lambda, penalty_step=step)
    run(plugin, model, stream, optimizer=OPTIMIZERS[name](model.parameters()), train_epochs=5)
    assert all(p.isfinite().all() and p.abs().max() < 50 for p in model.parameters())


def test_gradient_steps_diverge_where_implicit_ones_do_not():
    stream, model = task_stream(3, n_samples=40).train_stream, MultiHead()
    plugin = PriorEWCPlugin(1e6, penalty_step="gradient")
    with pytest.raises(ValueError, match=r"penalty_step='implicit'"):
        run(plugin, model, stream, train_epochs=20)


class AfterStep(SupervisedPlugin):
    """The weights after the optimizer's step, before those of plugins that come later."""

    def __init__(self):
        super().__init__()
        self.weights = {}

    def after_update(self, strategy, **kwargs):
        self.weights = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}


class Equation(SupervisedPlugin):
    """Each step of known weights against the equation, with the rates that groups have then."""

    def __init__(self, plugin, after_step):
        super().__init__()
        self.plugin, self.after_step, self.rates = plugin, after_step, set()

    def after_training_iteration(self, strategy, **kwargs):
        posterior, n_samples = self.plugin.posterior, len(strategy.experience.dataset)
        names = {p: n for n, p in strategy.model.named_parameters()}
        for group in strategy.optimizer.param_groups:
            eta = group["lr"] / (1 - group["momentum"])
            self.rates.add(group["lr"])
            for p in group["params"]:
                n, known = names[p], posterior.known[names[p]]
                s = torch.where(known, self.plugin.ewc_lambda * posterior.precision[n], 1.0)
                s = s / n_samples
                expected = (self.after_step.weights[n] + eta * s * posterior.mean[n]) / (
                    1 + eta * s
                )
                torch.testing.assert_close(p.detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_steps_with_momentum_groups_and_a_schedule():
    stream, model = task_stream(2, task_labels=[0, 0]).train_stream, mlp(n_out=2)
    optimizer = torch.optim.SGD(
        [
            {"params": model[0].parameters()},
            {"params": model[2].parameters(), "lr": 0.02, "momentum": 0.5},
        ],
        lr=0.1,
        momentum=0.9,
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    plugin, after_step = PriorEWCPlugin(30.0, penalty_step="implicit"), AfterStep()
    equation = Equation(plugin, after_step)
    scheduling = LRSchedulerPlugin(schedule, reset_lr=False)
    run(after_step, model, stream, plugin, equation, scheduling, optimizer=optimizer)
    assert len(equation.rates) >= 4


@pytest.mark.usefixtures("float64")
def test_what_plugins_and_loggers_see_is_the_same():
    """At the same weights: rates are tiny, so that the two trainings do not part."""
    seen = []
    for step in ("implicit", "gradient"):
        torch.manual_seed(0)
        stream, model = task_stream(2).train_stream, MultiHead()
        recorder = Recorder()
        plugin = PriorEWCPlugin(5.0, penalty_step=step, log_every=1)
        strategy = naive(model, plugin, recorder, lr=1e-9)
        published = []

        class Metrics(SupervisedPlugin):
            def after_training_iteration(self, strategy, published=published, **kwargs):
                last = strategy.evaluator.get_last_metrics()
                published.append(
                    [last.get(f"PriorEWC/{n}", 0) for n in ("NLL", "Prior", "EWC", "Loss")]
                )

        strategy.plugins.append(Metrics())
        strategy.train(stream[0], shuffle=False)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1  # so that EWC is not zero
        strategy.train(stream[1], shuffle=False)
        seen.append((torch.tensor(recorder.losses), torch.tensor(published)))
    (losses, values), (losses_of_gradient, values_of_gradient) = seen
    torch.testing.assert_close(losses, losses_of_gradient, rtol=1e-6, atol=0)
    torch.testing.assert_close(values, values_of_gradient, rtol=1e-6, atol=1e-9)
    assert (values[-1][2]) > 0
    torch.testing.assert_close(values[1:, :3].sum(1), values[1:, 3])


def test_heads_that_replay_moves_are_pulled_back():
    stream = task_stream(3).train_stream
    distances = []
    for ewc_lambda in (0.0, 1e6):
        torch.manual_seed(0)
        model, plugin = MultiHead(), PriorEWCPlugin(ewc_lambda, penalty_step="implicit")
        strategy = naive(model, plugin, ReplayPlugin(20), lr=0.1)
        strategy.train(stream[0])
        head = model.output["head"].classifiers["0"].classifier.weight
        old = head.detach().clone()
        strategy.train(stream[1])
        distances.append((head - old).norm().item())
    assert distances[0] > 0
    assert distances[1] < 0.1 * distances[0]


def test_a_softmax_that_grows_under_adam():
    stream = task_stream(3, offset=True, task_labels=[0, 0, 0]).train_stream
    model = Incremental()
    plugin = PriorEWCPlugin(1e5, penalty_step="implicit")
    strategy = naive(model, plugin, optimizer=torch.optim.Adam(model.parameters(), 0.01))
    for n_seen, experience in zip((2, 4, 6), stream, strict=True):
        before = plugin.posterior.mean.get("head.classifier.weight")
        strategy.train(experience)
        assert plugin.posterior.known["head.classifier.bias"].sum() == n_seen
        if before is not None:
            after = plugin.posterior.mean["head.classifier.weight"]
            assert (after[n_seen - 2 :] - before.mean()).abs().max() > 0
    assert all(p.isfinite().all() for p in model.parameters())


def test_frozen_weights_stay():
    stream, model = task_stream(2, task_labels=[0, 0]).train_stream, mlp(n_out=2)
    plugin = PriorEWCPlugin(1e3, penalty_step="implicit")
    strategy = naive(model, plugin)
    strategy.train(stream[0])
    model[0].weight.requires_grad_(False)
    with torch.no_grad():
        model[0].weight += 1  # by hand
    before = model[0].weight.clone()
    strategy.train(stream[1])
    assert torch.equal(model[0].weight, before)


class OwnOptimizer(Naive):
    """Leaves the optimizer as it is; Avalanche's strategies give it all of the model's weights."""

    def make_optimizer(self, **kwargs):
        pass


def trained(step, make_optimizer, of_module=lambda model: model, **options):
    torch.manual_seed(0)
    stream, model = task_stream(2, task_labels=[0, 0]).train_stream, mlp(n_out=2)
    optimizer = make_optimizer(of_module(model).parameters())
    run(PriorEWCPlugin(0.1, penalty_step=step), model, stream, optimizer=optimizer, **options)
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [*OPTIMIZERS, "Adadelta"])
def test_by_default_steps_are_implicit_where_the_gradient_can_diverge(name):
    make = OPTIMIZERS.get(name, torch.optim.Adadelta)
    expected = "implicit" if name in ("SGD", "SGD, momentum", "RAdam") else "gradient"
    by_default, explicit = trained("auto", make), trained(expected, make)
    assert all(torch.equal(by_default[n], explicit[n]) for n in explicit)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda p: torch.optim.SGD(p, 0.01, maximize=True), "SGD"),
        (lambda p: torch.optim.RMSprop(p, 0.01, centered=True), "RMSprop"),
        (lambda p: torch.optim.Adadelta(p), "Adadelta"),
        (lambda p: type("Mine", (torch.optim.Adam,), {})(p, 0.01), "Mine"),
    ],
)
def test_unknown_steps_take_the_gradient_with_one_warning(make, name):
    with pytest.warns(UserWarning, match=f"size of {name}'s steps is not known") as caught:
        implicit = trained("implicit", make)
    assert len([w for w in caught if "penalty" in str(w.message)]) == 1
    gradient = trained("gradient", make)
    for n, value in gradient.items():
        assert torch.equal(value, implicit[n]), n


def test_weights_outside_the_optimizer_have_the_gradient():
    def make(parameters):
        return torch.optim.SGD(parameters, 0.01)

    with pytest.warns(
        UserWarning, match=r"optimizer does not hold '0.weight' and 1 others"
    ) as caught:
        trained("implicit", make, of_module=lambda model: model[2], strategy=OwnOptimizer)
    assert len([w for w in caught if "penalty" in str(w.message)]) == 1


def test_weights_outside_the_optimizer_get_the_penaltys_gradient():
    stream, model = task_stream(1).train_stream, mlp(n_out=2)
    gradients = {}

    class Gradients(SupervisedPlugin):
        def after_backward(self, strategy, **kwargs):
            if gradients:
                return
            loss = nn.functional.cross_entropy(strategy.model(strategy.mb_x), strategy.mb_y)
            of_loss = torch.autograd.grad(loss, [*strategy.model.parameters()])
            for (n, p), g in zip(strategy.model.named_parameters(), of_loss, strict=True):
                gradients[n] = (p.grad - g, p.detach() / len(strategy.experience.dataset))

    optimizer = torch.optim.SGD(model[2].parameters(), 0.01)
    plugin = PriorEWCPlugin(penalty_step="implicit")
    with pytest.warns(UserWarning, match="does not hold"):
        run(plugin, model, stream, Gradients(), optimizer=optimizer, strategy=OwnOptimizer)
    for name, (of_penalty, expected) in gradients.items():
        held = name.startswith("2.")
        torch.testing.assert_close(
            of_penalty, 0 * expected if held else expected, atol=1e-6, rtol=1e-4
        )


def test_a_loss_that_is_not_finite_is_refused():
    model = mlp(n_out=2)
    with pytest.raises(ValueError, match="the loss is not finite"):
        run(
            PriorEWCPlugin(penalty_step="implicit"),
            model,
            task_stream(1).train_stream,
            lr=1e30,
            train_epochs=5,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", ["implicit", "gradient"])
def test_training_in_half_precision(dtype, step):
    """By the same weights in float32, as far as the type can tell."""
    weights = {}
    for used in (torch.float32, dtype):
        torch.manual_seed(0)
        stream = task_stream(2, task_labels=[0, 0]).train_stream
        model = mlp(n_out=2).to(used)
        model.register_forward_pre_hook(lambda _, x, used=used: tuple(t.to(used) for t in x))
        plugin = PriorEWCPlugin(2.0, penalty_step=step)
        run(plugin, model, stream, lr=0.01)
        weights[used] = {n: p.detach().float() for n, p in model.named_parameters()}
        for name, p in model.named_parameters():
            assert p.dtype == used
            for kept in (plugin.posterior.mean[name], plugin.posterior.precision[name]):
                assert kept.dtype == torch.float32
            assert torch.equal(plugin.posterior.mean[name], p.detach().float())
    for name, expected in weights[torch.float32].items():
        torch.testing.assert_close(weights[dtype][name], expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("step", ["explicit", None])
def test_other_kinds_are_refused(step):
    with pytest.raises(ValueError, match="penalty_step must be one of"):
        PriorEWCPlugin(penalty_step=step)


def test_trained_states_can_be_saved_with_their_plugin(tmp_path):
    stream, model = task_stream(2, task_labels=[0, 0]).train_stream, mlp(n_out=2)
    plugin = PriorEWCPlugin(penalty_step="implicit")
    run(plugin, model, stream[:1])
    torch.save((model, plugin), tmp_path / "state.pt")
    model, plugin = torch.load(tmp_path / "state.pt", weights_only=False)
    run(plugin, model, stream[1:])
    assert math.isfinite(sum(p.sum().item() for p in model.parameters()))
