import pytest
import torch
from avalanche.models import MultiHeadClassifier
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from avalanche_hnet import BlockMultiHeadClassifier, Gaussian, PriorEWCPlugin, diagonal_fisher
from tests.support.models import Incremental, MultiHead, mlp
from tests.support.oracles import loop_fisher
from tests.support.strategies import Recorder, naive, run
from tests.support.streams import regression_stream, task_stream, two_tasks_in_one


class PlainMultiHeadEWC:
    def __init__(self, weights, lam, variance, gamma, lr, batch_size, epochs, implicit):
        self.phi = {n: w.clone() for n, w in weights.items()}
        self.lam, self.variance, self.gamma = lam, variance, gamma
        self.lr, self.batch_size, self.epochs = lr, batch_size, epochs
        self.implicit = implicit
        self.precision, self.mean = {}, {}
        self.losses = []

    @staticmethod
    def logits(phi, x, task):
        hidden = torch.tanh(x @ phi["features.1.weight"].T + phi["features.1.bias"])
        head = f"output.head.classifiers.{task}.classifier"
        return hidden @ phi[f"{head}.weight"].T + phi[f"{head}.bias"]

    def nll(self, phi, x, y, task):
        log_p = torch.log_softmax(self.logits(phi, x, task), 1)
        return -log_p[torch.arange(len(y)), y]

    def train(self, x, y, task):
        own = [n for n in self.phi if "classifiers" not in n or f"classifiers.{task}." in n]
        for _ in range(self.epochs):
            for start in range(0, len(x), self.batch_size):
                batch = slice(start, start + self.batch_size)
                phi = {n: w.clone().requires_grad_() for n, w in self.phi.items()}
                nll = self.nll(phi, x[batch], y[batch], task).mean()
                penalty = 0
                for n in own:
                    if n not in self.precision:
                        penalty = penalty + (phi[n] ** 2).sum() / (2 * self.variance) / len(x)
                for n in self.precision:
                    ewc = (self.precision[n] * (phi[n] - self.mean[n]) ** 2).sum() / 2
                    penalty = penalty + self.lam * ewc / len(x)
                self.losses.append((nll + penalty).item())
                (nll if self.implicit else nll + penalty).backward()
                for n, w in phi.items():
                    if w.grad is not None:
                        self.phi[n] = self.phi[n] - self.lr * w.grad
                if self.implicit:
                    self.take_implicit_steps(own, len(x))
        self.take_in(x, y, task, own)

    def take_implicit_steps(self, own, n_samples):
        for n in {*own, *self.precision}:
            precision, mean = self.precision.get(n), self.mean.get(n, 0)
            s = 1 / self.variance if precision is None else self.lam * precision
            eta_s = self.lr * s / n_samples
            self.phi[n] = (self.phi[n] + eta_s * mean) / (1 + eta_s)

    def take_in(self, x, y, task, own):
        total = {n: torch.zeros_like(self.phi[n]) for n in own}
        for i in range(len(x)):
            phi = {n: w.clone().requires_grad_() for n, w in self.phi.items()}
            self.nll(phi, x[i : i + 1], y[i : i + 1], task).sum().backward()
            for n in own:
                total[n] += phi[n].grad ** 2
        for n in self.precision:
            old = self.precision[n]
            self.precision[n] = 1 / self.variance + self.gamma * (old - 1 / self.variance)
        for n in own:
            self.precision[n] = self.precision.get(n, 1 / self.variance) + total[n]
        self.mean = {n: self.phi[n].clone() for n in self.precision}


def model_with_heads(stream, head=None):
    """All heads from the start, so that both implementations begin with the same weights."""
    model = MultiHead(head)
    for experience in stream:
        model.output["head"].adaptation(experience)
    return model


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("step", ["implicit", "gradient"])
def test_three_heads_equal_the_equations(gamma, step):
    stream = task_stream(3).train_stream
    model = model_with_heads(stream)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    recorder = Recorder()
    plugin = PriorEWCPlugin(3.0, prior_variance=0.5, gamma=gamma, penalty_step=step)
    strategy = naive(model, plugin, recorder)
    plain = PlainMultiHeadEWC(
        start, 3.0, 0.5, gamma, lr=0.1, batch_size=5, epochs=2, implicit=step == "implicit"
    )
    for task, experience in enumerate(stream):
        strategy.train(experience, shuffle=False)
        x, y, _ = zip(*experience.dataset, strict=True)
        plain.train(torch.stack(x), torch.tensor(y), task)

        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), plain.phi[name], rtol=1e-10, atol=1e-12)
            known = plugin.posterior.known[name]
            assert known.all() if name in plain.precision else not known.any()
            if name in plain.precision:
                for found, expected in (
                    (plugin.posterior.precision, plain.precision),
                    (plugin.posterior.mean, plain.mean),
                ):
                    torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(recorder.losses, plain.losses, rtol=1e-10, atol=0)


@pytest.mark.usefixtures("float64")
def test_one_layer_of_blocks_equals_separate_heads():
    stream = task_stream(3).train_stream
    separate = model_with_heads(stream)
    blocks = model_with_heads(stream, BlockMultiHeadClassifier(8))
    heads = [h.classifier for h in separate.output["head"].classifiers.values()]
    blocks.features.load_state_dict(separate.features.state_dict())
    with torch.no_grad():
        layer = blocks.output["head"].classifier
        layer.weight.copy_(torch.cat([h.weight for h in heads]))
        layer.bias.copy_(torch.cat([h.bias for h in heads]))
    plugins, recorders = [], []
    for model in (separate, blocks):
        plugins.append(PriorEWCPlugin(3.0, gamma=0.9))
        recorders.append(Recorder())
        strategy = naive(model, plugins[-1], recorders[-1])
        for experience in stream:
            strategy.train(experience, shuffle=False)
    torch.testing.assert_close(recorders[0].losses, recorders[1].losses, rtol=1e-10, atol=0)
    rows = [
        plugins[0].posterior.precision[f"output.head.classifiers.{t}.classifier.weight"]
        for t in range(3)
    ]
    torch.testing.assert_close(
        plugins[1].posterior.precision["output.head.classifier.weight"], torch.cat(rows)
    )


@pytest.mark.usefixtures("float64")
def test_linear_gaussian_stream_gives_the_exact_bayesian_posterior():
    """Conjugate Bayesian linear regression with orthogonal features, three experiences."""
    noise, variance, n, d = 0.3, 2.0, 16, 4
    truth = torch.randn(d)
    data = []
    for scale in (1.0, 0.5, 1.5):
        x = scale * torch.linalg.qr(torch.randn(n, d))[0] * n**0.5  # orthogonal columns
        x = x * torch.linspace(0.8, 1.2, d)
        data.append((x, (x @ truth + noise * torch.randn(n))[:, None]))

    model = nn.Linear(d, 1, bias=False)
    plugin = PriorEWCPlugin(prior_variance=variance, fisher="exact", likelihood=Gaussian(noise))
    strategy = naive(
        model, plugin, criterion=nn.MSELoss(), lr=0.05, train_mb_size=n, train_epochs=600
    )
    precision, shift = torch.eye(d) / variance, torch.zeros(d)
    for experience, (x, y) in zip(regression_stream(data).train_stream, data, strict=True):
        strategy.train(experience)
        precision += x.T @ x / noise**2
        shift += x.T @ y[:, 0] / noise**2
        torch.testing.assert_close(
            plugin.posterior.precision["weight"][0], precision.diagonal(), rtol=1e-9, atol=0
        )
        torch.testing.assert_close(
            plugin.posterior.mean["weight"][0],
            torch.linalg.solve(precision, shift),
            rtol=1e-8,
            atol=1e-9,
        )


@pytest.mark.usefixtures("float64")
def test_prior_enters_once_per_weight_and_is_not_decayed():
    """With γ = 0 and no data in the Fisher, what remains of the precision is the prior."""
    stream = task_stream(3).train_stream
    plugin = PriorEWCPlugin(prior_variance=0.25, gamma=0.0)
    run(plugin, MultiHead(), stream)
    last = plugin.posterior
    model_of_last = "output.head.classifiers.2"
    for name, precision in last.precision.items():
        if "classifiers" in name and not name.startswith(model_of_last):
            assert (precision == 4).all()
        else:
            assert (precision >= 4).all()
            assert (precision > 4).any()

    summed = PriorEWCPlugin(prior_variance=0.25, gamma=1.0)
    model = MultiHead()
    strategy, data = naive(model, summed), {}
    for experience in stream:
        strategy.train(experience)
        x, y, t = (
            torch.stack([torch.as_tensor(v) for v in c])
            for c in zip(*experience.dataset, strict=True)
        )
        for name, f in loop_fisher(model, x, y, nn.functional.cross_entropy, t).items():
            data[name] = data.get(name, 0) + len(x) * f
    for name, total in data.items():
        torch.testing.assert_close(summed.posterior.precision[name], 4 + total)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("epochs", [1, 3])
def test_gamma_is_applied_once_per_experience(epochs):
    stream = task_stream(2).train_stream
    plugin, model = PriorEWCPlugin(gamma=0.5), MultiHead()
    strategy = naive(model, plugin, train_epochs=epochs)
    strategy.train(stream[0])
    name = "output.head.classifiers.0.classifier.weight"
    first = plugin.posterior.precision[name].clone()
    strategy.train(stream[1])
    torch.testing.assert_close(plugin.posterior.precision[name], 1 + 0.5 * (first - 1))


@pytest.mark.filterwarnings("ignore:the prior adds")
@pytest.mark.parametrize("step", ["implicit", "gradient"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_other_tasks_heads_feel_nothing(optimizer, step):
    """Neither the prior nor the penalty, nor an optimizer's momentum by way of zero gradients."""
    stream = task_stream(3).train_stream
    model = model_with_heads(stream)
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {"weight_decay": 0.1}
    strategy = naive(
        model,
        PriorEWCPlugin(100.0, prior_variance=0.01, penalty_step=step),
        optimizer=optimizer(model.parameters(), 0.01, **options),
    )
    for task, experience in enumerate(stream):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        strategy.train(experience)
        for name, p in model.named_parameters():
            own = "classifiers" not in name or f"classifiers.{task}." in name
            assert torch.equal(p, before[name]) != own, name


def test_untrained_head_is_not_pulled_to_its_random_start():
    """Its gradient at the start of its first experience is that of the NLL and the prior."""
    stream = task_stream(2).train_stream
    model = model_with_heads(stream)
    plugin = PriorEWCPlugin(1e6, penalty_step="gradient")
    strategy = naive(model, plugin, lr=1e-8)
    strategy.train(stream[0])

    class Check(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            name = "output.head.classifiers.1.classifier.weight"
            assert not plugin.posterior.known[name].any()
            weight = dict(strategy.model.named_parameters())[name]
            gradient = torch.autograd.grad(strategy.loss, weight, retain_graph=True)[0]
            nll = nn.functional.cross_entropy(strategy.mb_output, strategy.mb_y)
            expected = torch.autograd.grad(nll, weight, retain_graph=True)[0] + weight / 20
            torch.testing.assert_close(gradient, expected)
            self.checked = True

    check = Check()
    strategy.plugins.insert(strategy.plugins.index(plugin) + 1, check)
    strategy.train(stream[1])
    assert check.checked


@pytest.mark.usefixtures("float64")
def test_mean_squared_error_has_the_same_minimiser_as_the_formula():
    """Gradients are those of the per-sample objective times 2s²/D."""
    x, y, noise = torch.randn(10, 4), torch.randn(10, 3), 0.5
    model = nn.Linear(4, 3)
    start = [p.detach().clone().requires_grad_() for p in model.parameters()]
    plugin = PriorEWCPlugin(likelihood=Gaussian(noise), prior_variance=0.1, penalty_step="gradient")
    strategy = naive(
        model, plugin, criterion=nn.MSELoss(), lr=1.0, train_mb_size=10, train_epochs=1
    )
    strategy.train(regression_stream([(x, y)]).train_stream[0])
    nll = ((y - x @ start[0].T - start[1]) ** 2).sum(1).mean() / (2 * noise**2)
    prior = sum((p**2).sum() for p in start) / (2 * 0.1) / 10
    (nll + prior).backward()
    for p, q in zip(model.parameters(), start, strict=True):
        torch.testing.assert_close(p.detach(), (q - 2 * noise**2 / 3 * q.grad).detach())


def test_initial_prior_mean():
    model = mlp(n_out=2)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    plugin, recorder = PriorEWCPlugin(prior_mean="initial", prior_variance=1e-6), Recorder()
    strategy = naive(model, plugin, recorder, lr=1e-7, train_epochs=1)
    stream = task_stream(2, task_labels=[0, 0]).train_stream
    strategy.train(stream[0])
    moved = max((p - start[n]).abs().max() for n, p in model.named_parameters())
    assert moved < 1e-5
    plain = [
        nn.functional.cross_entropy(model(x[None]), torch.tensor([y])).item()
        for x, y, _ in stream[0].dataset
    ]
    assert recorder.losses[0] < 10 * max(plain)


def test_train_from_scratch_forgets_the_posterior():
    stream = task_stream(2).train_stream
    plugin, model = PriorEWCPlugin(1e6, train_from_scratch=True), MultiHead()
    strategy = run(plugin, model, stream)
    assert not plugin.posterior.known["output.head.classifiers.0.classifier.weight"].any()
    x, y, t = (
        torch.stack([torch.as_tensor(v) for v in c]) for c in zip(*stream[1].dataset, strict=True)
    )
    fisher = diagonal_fisher(strategy.model, [(x, y, t)])
    name = "features.1.weight"
    torch.testing.assert_close(plugin.posterior.precision[name], 1 + len(x) * fisher[name])


def test_n_fisher_takes_a_random_subset_and_does_not_disturb_the_training():
    stream = task_stream(1, n_samples=40).train_stream
    weights, precisions = [], []
    for n_fisher in (None, 5):
        torch.manual_seed(1)
        model, plugin = mlp(n_out=2), PriorEWCPlugin(n_fisher=n_fisher, fisher="sampled")
        strategy = run(plugin, model, stream, shuffle=True)
        precisions.append(plugin.posterior.precision["2.bias"])
        assert strategy.evaluator.get_last_metrics()["PriorEWC/FisherSamples"] == (n_fisher or 40)
        weights.append((torch.rand(1), model[0].weight.detach().clone()))
    torch.testing.assert_close(weights[0], weights[1])
    assert not torch.allclose(precisions[0], precisions[1])


def test_growing_softmax():
    stream = task_stream(3, offset=True, task_labels=[0, 0, 0]).train_stream
    plugin, model = PriorEWCPlugin(10.0), Incremental()
    strategy = naive(model, plugin)
    for n_seen, experience in zip((2, 4, 6), stream, strict=True):
        strategy.train(experience)
        assert plugin.posterior.known["head.classifier.bias"].sum() == n_seen
        strategy.eval(stream)  # grows the classifier by classes not seen yet
    assert plugin.posterior.mean["head.classifier.weight"].shape == (6, 8)


def test_task_that_comes_back():
    stream = task_stream(3, task_labels=[0, 1, 0]).train_stream
    plugin = PriorEWCPlugin(10.0)
    strategy, precisions = naive(MultiHead(), plugin), []
    for experience in stream:
        strategy.train(experience)
        name = "output.head.classifiers.0.classifier.bias"
        precisions.append(plugin.posterior.precision[name].clone())
    assert torch.equal(precisions[0], precisions[1])
    assert (precisions[2] > precisions[1]).all()


@pytest.mark.parametrize(
    "head", [lambda: MultiHeadClassifier(8, masking=False), lambda: BlockMultiHeadClassifier(8)]
)
def test_experience_with_several_tasks(head):
    stream = task_stream(3).train_stream
    plugin, model = PriorEWCPlugin(10.0), MultiHead(head())
    strategy = naive(model, plugin)
    strategy.train(two_tasks_in_one(stream[0], stream[2]))
    strategy.train(stream[1])
    assert len(plugin.posterior.known) == len(dict(model.named_parameters()))
    assert all(known.all() for known in plugin.posterior.known.values())


def test_penalty_protects_what_was_learned():
    """A strong penalty keeps an important weight nearer to where it was than none does."""
    stream = task_stream(2, task_labels=[0, 0]).train_stream
    distances = []
    for lam in (0.0, 100.0):
        torch.manual_seed(0)
        plugin, model = PriorEWCPlugin(lam), mlp(n_out=2)
        strategy = naive(model, plugin, lr=0.01, train_epochs=20)
        strategy.train(stream[0])
        old = {n: p.detach().clone() for n, p in model.named_parameters()}
        weights = {n: t.clone() for n, t in plugin.posterior.precision.items()}
        strategy.train(stream[1])
        distances.append(
            sum((weights[n] * (p - old[n]) ** 2).sum() for n, p in model.named_parameters()).item()
        )
    assert distances[1] < 0.5 * distances[0]


def test_generator_makes_the_draws_repeatable():
    stream, found = task_stream(1, n_samples=40).train_stream, []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(seed)
        plugin = PriorEWCPlugin(n_fisher=5, fisher="sampled", generator=generator)
        run(plugin, mlp(n_out=2), stream)
        found.append(plugin.posterior.precision["2.bias"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_training_goes_on_from_saved_states(tmp_path):
    stream = task_stream(3, task_labels=[0, 0, 0]).train_stream
    torch.manual_seed(0)
    model, plugin = mlp(n_out=2), PriorEWCPlugin(10.0)
    strategy = run(plugin, model, stream[:2])
    torch.save([model.state_dict(), plugin.posterior.state_dict()], tmp_path / "state.pt")
    strategy.train(stream[2], shuffle=False)

    restored, fresh = mlp(n_out=2), PriorEWCPlugin(10.0)
    weights, posterior = torch.load(tmp_path / "state.pt", weights_only=True)
    restored.load_state_dict(weights)
    fresh.posterior.load_state_dict(posterior)
    run(fresh, restored, stream[2:])
    for name, precision in plugin.posterior.precision.items():
        torch.testing.assert_close(fresh.posterior.precision[name], precision)
        torch.testing.assert_close(fresh.posterior.mean[name], plugin.posterior.mean[name])
