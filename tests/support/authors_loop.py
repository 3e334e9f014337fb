"""The loop of von Oswald et al. 2020, as slow as it is simple.

It knows nothing of the package but the names of the weights that it starts with.
"""

import torch
import torch.nn.functional as F
from torch.func import functional_call, jacrev

from tests.support.models import mlp


class Adam:
    def __init__(self, lr):
        self.lr, self.memory = lr, {}

    def change(self, name, weight, gradient, keep=False):
        m, v, t = self.memory.get(name, (0.0, 0.0, 0))
        m, v, t = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2, t + 1
        if keep:
            self.memory[name] = (m.detach(), v.detach(), t)
        root = (torch.where(v > 0, v, 1) / (1 - 0.999**t)).sqrt()
        return torch.where(v > 0, -self.lr * (m / (1 - 0.9**t)) / (root + 1e-8), 0)


class SGD:
    def __init__(self, lr, momentum=0.9, weight_decay=0.01):
        self.lr, self.momentum, self.decay, self.memory = lr, momentum, weight_decay, {}

    def change(self, name, weight, gradient, keep=False):
        velocity = self.momentum * self.memory.get(name, 0.0) + gradient + self.decay * weight
        if keep:
            self.memory[name] = velocity.detach()
        return -self.lr * velocity


class Adagrad:
    def __init__(self, lr, start=0.1):
        self.lr, self.start, self.memory = lr, start, {}

    def change(self, name, weight, gradient, keep=False):
        total = self.memory.get(name, self.start) + gradient**2
        if keep:
            self.memory[name] = total.detach()
        return -self.lr * gradient / (total.sqrt() + 1e-10)


class AuthorsLoop:
    """θ and embeddings by name, as in the hypernetwork; main network and losses by the book."""

    def __init__(
        self,
        weights,
        *,
        n_out=2,
        kind="fixed",
        beta=1.0,
        lookahead="optimizer",
        differentiable=False,
        train_previous=False,
        multi_head=False,
        masked=False,
        fisher_weights=False,
        gamma=1.0,
        variance=1.0,
        online=True,
        clip=None,
        clip_value=None,
        gradient_factor=1.0,
        optimizer=lambda: Adam(0.01),
        embedding_optimizer=None,
        decay_per_epoch=1.0,
        reset=True,
        scratch=False,
        prior_variance=None,
    ):
        self.prior_variance = prior_variance
        self.theta = {n: w.clone() for n, w in weights.items() if not belongs_to_task(n)}
        self.initial = {n: w.clone() for n, w in self.theta.items()}
        self.own = {n: w.clone() for n, w in weights.items() if belongs_to_task(n)}
        self.target = mlp(n_out=n_out)
        self.shapes = {n: p.shape for n, p in self.target.named_parameters()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.kind, self.beta, self.lookahead = kind, beta, lookahead
        self.differentiable, self.train_previous = differentiable, train_previous
        self.multi_head, self.masked, self.fisher_weights = multi_head, masked, fisher_weights
        self.gamma, self.variance, self.online = gamma, variance, online
        self.clip, self.clip_value = clip, clip_value
        self.gradient_factor = gradient_factor
        self.make_optimizer = optimizer
        self.make_embedding_optimizer = embedding_optimizer or optimizer
        self.decay_per_epoch, self.reset, self.scratch = decay_per_epoch, reset, scratch
        self.optimizer = optimizer()
        self.learned, self.fisher = [], {}
        self.precision, self.centre, self.penalties = {}, {}, []
        self.losses, self.history, self.drawn = [], [], []

    # The networks.

    def generate(self, task, weights):
        """Flat weights of the main network."""
        embedding = weights.get(f"embeddings.{task}", self.own[f"embeddings.{task}"])
        chunks = weights.get("chunk_embeddings")
        if f"task_chunk_embeddings.{task}" in {**self.own, **weights}:
            name = f"task_chunk_embeddings.{task}"
            chunks = weights.get(name, self.own[name])
        pieces = []
        for chunk in [embedding[:0]] if chunks is None else chunks:
            z = torch.cat([chunk, embedding])
            for layer in ("trunk.0", "trunk.2"):
                z = torch.tanh(weights[f"{layer}.weight"] @ z + weights[f"{layer}.bias"])
            pieces.append(z @ weights["output.weight"] + weights["output.bias"])
        return torch.cat(pieces)[: sum(self.sizes)]

    def outputs(self, flat, x, task):
        parts = flat.split(self.sizes)
        parameters = {n: p.view(s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}
        outputs = functional_call(self.target, parameters, (x,))
        return outputs[:, 2 * task : 2 * task + 2] if self.multi_head else outputs

    def mask(self, task):
        """The weights that count for a task."""
        masks = {n: torch.ones(s) for n, s in self.shapes.items()}
        if self.masked:
            for name in ("2.weight", "2.bias"):
                masks[name].zero_()
                masks[name][2 * task : 2 * task + 2] = 1
        return torch.cat([m.flatten() for m in masks.values()])

    # The regulariser.

    def penalty(self, theta, change, tasks):
        if self.kind == "ewc":
            return self.ewc(theta)
        moved = {n: w + change.get(n, 0) for n, w in theta.items()}
        total = 0
        for task in tasks:
            if self.kind == "fixed":
                deviation = self.generate(task, moved) - self.targets[task]
            elif self.kind == "value-preserving":
                deviation = self.generate(task, moved) - self.generate(task, theta)
            elif self.kind == "jacobian":
                jacobian = jacrev(lambda w, task=task: self.generate(task, w))(theta)
                deviation = sum(
                    (jacobian[n].flatten(1) @ change[n].flatten()) for n in theta if n in change
                )
            squares = self.mask(task) * deviation**2
            if self.fisher_weights:
                squares = squares * self.fisher[task]
            total = total + squares.sum()
        return self.beta / len(tasks) * total

    def ewc(self, theta):
        total = 0
        if not self.learned or not self.online:
            total = sum((w**2).sum() for w in theta.values()) / (2 * self.variance)
        terms = [(self.precision, self.centre)] if self.online else self.penalties
        for precision, centre in terms:
            for n in precision:
                total = total + self.beta / 2 * (precision[n] * (theta[n] - centre[n]) ** 2).sum()
        return total / self.n_samples

    # The loop.

    def train(self, x, y, task, *, batch_size=5, epochs=2, choices=None):
        """One experience. ``choices``: of which task subsets one must lead to given weights."""
        self.n_samples = len(x)
        if self.scratch:
            self.theta = {n: w.clone() for n, w in self.initial.items()}
        if self.reset or self.scratch:
            self.optimizer = self.make_optimizer()
        embedding_optimizer = self.make_embedding_optimizer()
        earlier = [t for t in self.learned if t != task]
        if self.train_previous:
            for n in [n for n in self.theta if belongs_to_task(n)]:
                self.own[n] = self.theta.pop(n)
            for n in [n for n in self.own if int(n.split(".")[1]) in earlier]:
                self.theta[n] = self.own[n]
        own = [n for n in self.own if n.endswith(f".{task}")]
        self.targets = {t: self.generate(t, self.theta) for t in earlier}
        lr, embedding_lr = self.optimizer.lr, embedding_optimizer.lr
        for epoch in range(epochs):
            self.optimizer.lr = lr * self.decay_per_epoch**epoch
            if self.make_embedding_optimizer is self.make_optimizer:
                embedding_optimizer.lr = embedding_lr * self.decay_per_epoch**epoch
            for start in range(0, len(x), batch_size):
                batch = x[start : start + batch_size], y[start : start + batch_size]
                candidates = [earlier] if choices is None else choices(earlier)
                for tasks in candidates:
                    gradients, loss = self.gradients(batch, task, own, tasks)
                    if choices is None or self.leads_to(gradients, choices.expected):
                        break
                else:
                    raise AssertionError("no subset of the tasks explains the step")
                self.drawn.append(tasks)
                self.losses.append(loss.item())
                for n in own:
                    change = embedding_optimizer.change(n, self.own[n], gradients[n], keep=True)
                    self.own[n] = self.own[n] + change
                for n in self.theta:
                    change = self.optimizer.change(n, self.theta[n], gradients[n], keep=True)
                    self.theta[n] = self.theta[n] + change
                self.history.append({**self.own, **self.theta})
        self.optimizer.lr = lr
        self.take_in(x, y, task)

    def leads_to(self, gradients, expected):
        weights = expected[len(self.history)]
        return all(
            torch.allclose(w + self.optimizer.change(n, w, gradients[n]), weights[n], 0, 1e-9)
            for n, w in self.theta.items()
        )

    def gradients(self, batch, task, own, tasks):
        leaves = {n: w.clone().requires_grad_() for n, w in self.theta.items()}
        leaves |= {n: self.own[n].clone().requires_grad_() for n in own}
        theta = {n: leaves[n] for n in self.theta}
        flat = self.generate(task, leaves)
        loss = F.cross_entropy(self.outputs(flat, batch[0], task), batch[1])
        if self.prior_variance is not None:
            loss = loss + (flat**2).sum() / (2 * self.prior_variance * self.n_samples)
        task_gradients = dict(
            zip(
                leaves,
                torch.autograd.grad(
                    loss,
                    [*leaves.values()],
                    create_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                ),
                strict=True,
            )
        )
        self.clip_gradients(task_gradients)
        if not self.differentiable:
            task_gradients = {n: g.detach() for n, g in task_gradients.items()}
        change = {}
        if self.lookahead == "sgd":
            change = {n: -self.optimizer.lr * task_gradients[n] for n in theta}
        elif self.lookahead == "optimizer":
            change = {
                n: self.optimizer.change(
                    n, theta[n] if self.differentiable else w, task_gradients[n]
                )
                for n, w in self.theta.items()
            }
        gradients = {n: g.detach() for n, g in task_gradients.items()}
        if tasks or self.kind == "ewc":
            found = torch.autograd.grad(
                self.penalty(theta, change, tasks),
                [*theta.values()],
                materialize_grads=True,
                allow_unused=True,
            )
            full = {n: gradients[n] + g for n, g in zip(theta, found, strict=True)}
            self.clip_gradients(full)
            gradients |= full
        return {n: self.gradient_factor * g for n, g in gradients.items()}, loss.detach()

    def clip_gradients(self, gradients):
        if self.clip_value is not None:
            for n, g in gradients.items():
                gradients[n] = torch.where(g.abs() > self.clip_value, self.clip_value * g.sign(), g)
        if self.clip is not None:
            norm = torch.cat([g.detach().flatten() for g in gradients.values()]).norm()
            for n in gradients:
                gradients[n] = gradients[n] * min(1.0, self.clip / (norm + 1e-6))

    # After an experience.

    def take_in(self, x, y, task):
        if self.fisher_weights:
            flat = self.generate(task, self.theta)
            self.fisher[task] = self.mean_squares(
                lambda n: [flat], lambda w, n: self.nll(w[0], x, y, task, n), len(x)
            )[0]
        if self.kind == "ewc":
            names = [*self.theta]
            squares = self.mean_squares(
                lambda n: [*self.theta.values()],
                lambda w, n: self.nll(
                    self.generate(task, dict(zip(names, w, strict=True))), x, y, task, n
                ),
                len(x),
            )
            total = {n: len(x) * s for n, s in zip(names, squares, strict=True)}
            self.penalties.append((total, {n: w.clone() for n, w in self.theta.items()}))
            prior = 1 / self.variance
            self.precision = {
                n: prior + self.gamma * (self.precision.get(n, prior) - prior) + total[n]
                for n in names
            }
            self.centre = self.penalties[-1][1]
        if task not in self.learned:
            self.learned.append(task)

    def nll(self, flat, x, y, task, n):
        return F.cross_entropy(self.outputs(flat, x[n : n + 1], task), y[n : n + 1])

    @staticmethod
    def mean_squares(weights, nll, n_samples):
        """Means over samples of squared gradients, one sample after the other."""
        total = None
        for n in range(n_samples):
            leaves = [w.detach().clone().requires_grad_() for w in weights(n)]
            squares = [g**2 for g in torch.autograd.grad(nll(leaves, n), leaves)]
            total = (
                squares if total is None else [a + b for a, b in zip(total, squares, strict=True)]
            )
        return [t / n_samples for t in total]


def belongs_to_task(name):
    return name.startswith(("embeddings.", "task_chunk_embeddings."))
