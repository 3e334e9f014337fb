"""Prior-focused learning with Kronecker products, as a plain loop over explicit matrices."""

import torch
import torch.nn.functional as F
from avalanche.training.plugins import SupervisedPlugin


def nearest_by_svd(precision, n_outputs):
    """The A ⊗ G that is nearest to a matrix over (o, i), (p, j), by the SVD of all its numbers."""
    n_inputs = len(precision) // n_outputs
    blocks = precision.view(n_outputs, n_inputs, n_outputs, n_inputs).permute(0, 2, 1, 3)
    left, values, right = torch.linalg.svd(blocks.reshape(n_outputs**2, -1), full_matrices=False)
    outputs, inputs = left[:, 0].view(n_outputs, -1), values[0] * right[0].view(n_inputs, -1)
    return torch.kron(outputs, inputs)


class Layer:
    """What is known of a linear layer's weights, in the order of its matrix (O, I + 1)."""

    def __init__(self, prefix):
        self.names = f"{prefix}.weight", f"{prefix}.bias"
        self.precision, self.known, self.mean = torch.zeros(0, 0), torch.zeros(0).bool(), None
        self.prior_mean = torch.zeros(0)

    def flat(self, tensors):
        weight, bias = (tensors[n] for n in self.names)
        return torch.cat([weight, bias[:, None]], 1).flatten()

    def put(self, flat, phi):
        matrix = flat.view(len(phi[self.names[1]]), -1)
        phi[self.names[0]], phi[self.names[1]] = matrix[:, :-1].clone(), matrix[:, -1].clone()

    def fit(self, phi, at_initial):
        """New rows know nothing."""
        now = self.flat(phi)
        new = len(now) - len(self.known)
        self.precision = F.pad(self.precision, (0, new, 0, new))
        self.known = F.pad(self.known, (0, new))
        start = now[-new:] if at_initial else torch.zeros(new)
        if new:
            self.prior_mean = torch.cat([self.prior_mean, start.detach()])
        self.mean = self.prior_mean if self.mean is None else F.pad(self.mean, (0, new))

    def rows(self, mask, phi):
        """A mask of output units as one of the matrix's elements."""
        n_inputs = phi[self.names[0]].shape[1] + 1
        return mask[:, None].expand(-1, n_inputs).flatten()


class PlainLoop:
    """Trains on batches with plain gradient steps, and takes in the Fisher sample by sample.

    Args:
        model: only to run: ``functional_call`` with hooks on linear layers.
        layers: the names of those, all that the model has.
        nll: of outputs (1, …) and targets (1, …).
        criterion: what is differentiated, the mean NLL times ``scale``.
        scale: see there.
        options: λ, σ², γ, learning rate, whether steps are implicit and the prior mean initial,
            rank (1 or None), kind of the Fisher.
    """

    def __init__(self, model, layers, *, nll=F.cross_entropy, criterion=None, scale=1.0, **options):
        self.model, self.layers = model, {name: Layer(name) for name in layers}
        self.nll, self.criterion, self.scale = nll, criterion or nll, scale
        self.options = {
            "lam": 1.0, "variance": 1.0, "gamma": 1.0, "lr": 0.1, "implicit": False,
            "at_initial": False, "rank": 1, "kind": "empirical",
        } | options  # fmt: skip
        self.phi, self.losses = {}, []

    def start(self, parameters):
        """Weights of new layers and rows; those that are there must be as this loop left them."""
        for name, p in parameters.items():
            old = self.phi.get(name)
            if old is not None:
                torch.testing.assert_close(p.detach()[: len(old)], old, rtol=1e-9, atol=1e-11)
            self.phi[name] = p.detach().clone()
        for layer in self.layers.values():
            if layer.names[0] in self.phi:
                layer.fit(self.phi, self.options["at_initial"])

    def train(self, batches, samples, active):
        """One experience.

        Args:
            batches: of inputs, targets and labels (None without), in order.
            samples: those of the experience, likewise, for the Fisher.
            active: masks of output units by layer; what is missing is at rest.
        """
        n_samples = len(samples[0])
        for x, y, *labels in batches:
            phi = {n: p.clone().requires_grad_() for n, p in self.phi.items()}
            loss = self.criterion(self.run(phi, x, *labels)[0], y)
            penalty = self.scale / n_samples * self.penalty(phi, active)
            self.losses.append((loss + penalty).item())
            (loss if self.options["implicit"] else loss + penalty).backward()
            for name, p in phi.items():
                if p.grad is not None:
                    self.phi[name] = self.phi[name] - self.options["lr"] * p.grad
            if self.options["implicit"]:
                self.take_implicit_steps(active, self.options["lr"] * self.scale / n_samples)
        self.take_in(samples, active)

    def penalty(self, phi, active):
        total, variance = 0, self.options["variance"]
        for name, layer in self.present().items():
            w = layer.flat(phi)
            new = self.mask(name, active) & ~layer.known
            total = total + ((w - layer.prior_mean)[new] ** 2).sum() / (2 * variance)
            d = (w - layer.mean) * layer.known
            total = total + self.options["lam"] / 2 * (d @ layer.precision @ d + d @ d / variance)
        return total

    def take_implicit_steps(self, active, eta):
        variance = self.options["variance"]
        for name, layer in self.present().items():
            w = layer.flat(self.phi)
            new, known = self.mask(name, active) & ~layer.known, layer.known
            pull = eta / variance
            w[new] = ((w + pull * layer.prior_mean) / (1 + pull))[new]
            d = (w - layer.mean)[known]
            precision = layer.precision[known][:, known] + torch.eye(len(d)) / variance
            system = torch.eye(len(d)) + eta * self.options["lam"] * precision
            w[known] = layer.mean[known] + torch.linalg.solve(system, d)
            layer.put(w, self.phi)

    def take_in(self, samples, active):
        factors = self.factors(samples)
        for name, layer in self.present().items():
            w, mask = layer.flat(self.phi), self.mask(name, active)
            layer.precision = self.options["gamma"] * layer.precision
            if name in factors:
                inputs, outputs = factors[name]
                data = len(samples[0]) * torch.kron(outputs, inputs)
                layer.precision = layer.precision + data * mask[:, None] * mask
                if self.options["rank"] == 1:
                    layer.precision = nearest_by_svd(layer.precision, len(outputs))
            layer.known = layer.known | mask
            layer.mean = torch.where(layer.known, w, layer.prior_mean)

    def factors(self, samples):
        """Mean a aᵀ over the samples of a layer, mean g gᵀ over all, one sample at a time."""
        n_samples, sums = len(samples[0]), {}
        for i in range(n_samples):
            x, y, *labels = (column[i : i + 1] for column in samples)
            outputs, calls = self.run(self.phi, x, *labels)
            names = [n for n, (_, s) in calls.items() if s.requires_grad]
            for weight, nll in self.expectation(outputs, y):
                gs = torch.autograd.grad(nll, [calls[n][1] for n in names], retain_graph=True)
                for n, g in zip(names, gs, strict=True):
                    a = torch.cat([calls[n][0][0], torch.ones(1)])
                    inputs, all_g, count = sums.setdefault(n, [0, 0, 0])
                    sums[n] = [inputs + weight * a.outer(a), all_g + weight * g[0].outer(g[0]),
                               count + weight]  # fmt: skip
        return {n: (inputs / count, g / n_samples) for n, (inputs, g, count) in sums.items()}

    def expectation(self, outputs, y):
        if self.options["kind"] == "empirical":
            return [(1.0, self.nll(outputs, y))]
        log_p = outputs.log_softmax(1)[0]
        return [(p.exp().item(), -p) for p in log_p]

    def run(self, phi, *inputs):
        """Outputs, and the input and output of each layer that was called."""
        calls, hooks = {}, []
        for name in self.layers:
            if f"{name}.weight" in phi:

                def record(module, args, output, name=name):
                    output = output if output.requires_grad else output.requires_grad_()
                    calls[name] = (args[0].detach(), output)
                    return output.clone()  # for activations in place

                hooks.append(self.model.get_submodule(name).register_forward_hook(record))
        try:
            outputs = torch.func.functional_call(self.model, phi, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs, calls

    def mask(self, name, active):
        layer = self.layers[name]
        blank = torch.zeros(len(self.phi[layer.names[1]]), dtype=torch.bool)
        return layer.rows(active.get(name, blank), self.phi)

    def present(self):
        return {n: layer for n, layer in self.layers.items() if layer.names[0] in self.phi}


class Batches(SupervisedPlugin):
    """Keeps the batches that a strategy trains on, and the weights and loss of each iteration."""

    def __init__(self, with_labels):
        super().__init__()
        self.with_labels, self.batches, self.losses, self.start = with_labels, [], [], {}

    def before_training_exp(self, strategy, **kwargs):
        self.batches, self.losses = [], []
        self.start = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}

    def after_backward(self, strategy, **kwargs):
        labels = [strategy.mb_task_id.clone()] if self.with_labels else []
        self.batches.append((strategy.mb_x.clone(), strategy.mb_y.clone(), *labels))
        self.losses.append(strategy.loss.item())


def precision_matrix(posterior, name):
    """The explicit matrix of a layer's data precision in a posterior."""
    products = posterior._parts.layers[name].products
    return sum(torch.kron(g[0], a[0]) for a, g in products)


def assert_same(posterior, parameters, loop, losses):
    """Weights, what is known, mean and precision, and the losses of all iterations."""
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(loop.losses), **close)
    for name, layer in loop.present().items():
        torch.testing.assert_close(layer.flat(parameters).detach(), layer.flat(loop.phi), **close)
        assert torch.equal(layer.flat(posterior.known), layer.known), name
        torch.testing.assert_close(layer.flat(posterior.mean), layer.mean, **close)
        scale = 1 + layer.precision.abs().max().item()
        found = (
            precision_matrix(posterior, name)
            if name in posterior._parts.layers
            else torch.zeros_like(layer.precision)
        )
        torch.testing.assert_close(found, layer.precision, rtol=0, atol=1e-9 * scale)
        diagonal = layer.precision.diagonal() + 1 / loop.options["variance"]
        torch.testing.assert_close(layer.flat(posterior.precision), diagonal, rtol=1e-9, atol=1e-9)
