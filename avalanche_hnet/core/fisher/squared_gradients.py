"""Squared per-sample gradients of any module, by the cheapest method that gets them right."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from avalanche_hnet.core.fisher.layer_rules import FisherRule, fisher_rule

Squares = dict[str, Tensor]

# Samples on which the fast methods are compared with single samples.
N_TRIAL = 3
# ``vmap`` holds at most so many per-sample gradients at a time (64 MiB of float32).
_BUDGET = 2**24


class SquaredGradients:
    """Σ_n (J_nᵀ c_n)² for the samples n of a batch, J_n the Jacobian of the outputs of sample n.

    A trial on a few samples decides for each parameter between the rule of its layer (one
    backward pass for the batch), ``vmap(grad)``, and one sample at a time: the first of these
    that agrees with the last. So tied weights, layers called twice, weights used outside their
    layer, sequences in dimension 0 and wrong rules cost time, but never correctness.

    Args:
        model: in evaluation mode; called with ``(x)`` or, if ``labels`` are given, with
            ``(x, labels)``.
        parameters: those whose gradients are wanted, by name.
        x: the first batch, samples in dimension 0.
        labels: task labels of ``x``, one and the same for all samples: (B,), or one number with
            which the model is called then, or None.

    Raises:
        ValueError: if the output for a sample depends on the other samples of its batch.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        x: Tensor,
        labels: Tensor | int | None,
    ) -> None:
        refuse_batch_statistics(model)
        self._model = model
        self._parameters = parameters
        self._label = labels[:1] if isinstance(labels, Tensor) else labels
        self._rules = {
            prefix: rule
            for prefix, module in model.named_modules()
            if any(p.requires_grad for p in module.parameters(recurse=False))
            and getattr(module, "weight", True) is not None  # put in from outside, as in HyperModel
            and (rule := fisher_rule(module)) is not None
        }
        self._is_plain = False
        self._vmapped: list[str] = []
        self._looped: list[str] = []
        self._choose_methods(x[:N_TRIAL])

    def forward(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Squares]]:
        """Outputs (B, …), and a function from c (of their shape) to Σ_n (J_nᵀ c_n)² by name."""
        outputs, calls = self._record(x)

        def squares(factor: Tensor) -> Squares:
            by_rule = self._parameters.keys() - {*self._vmapped, *self._looped}
            found = _by_rule(calls, outputs, factor, by_rule)
            return {
                **{n: s for n, s in found.items() if n in by_rule},
                **self._by_vmap(self._vmapped, x, factor),
                **self._one_by_one(self._looped, x, factor),
            }

        return outputs.detach(), squares

    def forward_weighted(
        self, x: Tensor, weights: Mapping[str, Tensor]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Outputs (B, …), and a function from c to Σ_i w_i (J_nᵀ c_n)_i² for each sample n, (B,).

        Rules give sums over samples only. But a sample's gradient times √u_n adds u_n times its
        squares to the sum, so their weighted sum, differentiated by u, has each sample's share.
        """
        outputs, calls = self._record(x)

        def sums(factor: Tensor) -> Tensor:
            by_rule = weights.keys() - {*self._vmapped, *self._looped}
            share = factor.new_ones(len(x), requires_grad=True)
            squares = _by_rule(calls, outputs, factor, by_rule, share.sqrt())
            constant = {n for n, s in squares.items() if n in by_rule and not s.requires_grad}
            if constant:  # a rule that cannot be differentiated
                names = [*self._vmapped, *self._looped, *sorted(constant)]
                self._give_up_rules(names, x[:N_TRIAL])
                return sums(factor)
            weighted = [(weights[n] * squares[n]).sum() for n in squares if n in by_rule]
            total = torch.zeros_like(share)
            if weighted:
                total += torch.autograd.grad(weighted, share)[0]
            for names, per_sample in (
                (self._vmapped, self._vmapped_gradients),
                (self._looped, self._single_gradients),
            ):
                names = [n for n in names if n in weights]
                for rows, gradients in per_sample(names, x, factor):
                    for name, g in gradients.items():
                        total[rows] += (weights[name] * g.square()).flatten(1).sum(1)
            return total.detach()

        return outputs.detach(), sums

    @property
    def is_plain(self) -> bool:
        """Whether all that is needed are products of matrices, and no gradients of samples."""
        return self._is_plain and not self._vmapped and not self._looped

    def _record(self, x: Tensor) -> tuple[Tensor, _Calls]:
        """Outputs, and the calls of layers with rules that they are made of."""
        with _recorded_layers(self._model, self._rules) as calls:
            outputs = self._model(*self._arguments(x))
        repeated = self._of_layers(calls.repeated()) - {*self._vmapped, *self._looped}
        if repeated:  # in this batch, but not in the trial
            self._give_up_rules([*self._vmapped, *self._looped, *sorted(repeated)], x[:N_TRIAL])
        self._is_plain = all(
            isinstance(call.layer, nn.Linear) and call.inputs.dim() == 2 for call in calls
        )
        return outputs, calls

    def _arguments(self, x: Tensor) -> tuple[Any, ...]:
        if self._label is None:
            return (x,)
        return x, self._label.expand(len(x)) if isinstance(self._label, Tensor) else self._label

    def _choose_methods(self, x: Tensor) -> None:
        singles = torch.cat([self._model(*self._arguments(xi)).detach() for xi in x.split(1)])
        batched, by_rules = self.forward(x)
        tolerance, rounding = _tolerances(batched.dtype)
        unit_scale = singles.abs().amax(0) + rounding * singles.abs().max()
        if not ((batched - singles).abs() <= tolerance * unit_scale).all():
            raise ValueError(
                "model gives a sample different outputs alone and in a batch, or from call to "
                "call, in evaluation mode, so it has no per-sample gradients; look for layers "
                "that mix samples (batch statistics) or draw random numbers (dropout) in "
                "evaluation mode"
            )
        truth, factor = self._trial(batched, x)
        found = by_rules(factor)
        # A layer with a rule that this task does not use (another head) is left to its rule.
        untrusted = {*self._vmapped, *self._looped}
        untrusted |= self._parameters.keys() - self._of_layers(self._rules)
        largest = _largest(truth)
        untrusted |= {n for n in self._parameters if self._disagree(n, found, truth, largest)}
        if untrusted:
            self._give_up_rules([n for n in self._parameters if n in untrusted], x)

    def _give_up_rules(self, names: list[str], x: Tensor) -> None:
        """Leave these parameters to ``vmap``, or to single samples where that fails."""
        truth, factor = self._trial(self._model(*self._arguments(x)), x)
        try:
            found = self._by_vmap(names, x, factor)
            largest = _largest(truth)
            self._looped = [
                n for n in names if n in truth and self._disagree(n, found, truth, largest)
            ]
        except Exception:  # what vmap cannot trace ends in errors of every kind
            self._looped = names
        self._vmapped = [n for n in names if n not in self._looped]
        if self._looped:
            warnings.warn(
                f"squared gradients of {', '.join(self._looped)} are computed one sample at a "
                "time, since neither a Fisher rule nor torch.func.vmap covers them",
                stacklevel=5,
            )

    def _trial(self, outputs: Tensor, x: Tensor) -> tuple[Squares, Tensor]:
        """The truth for random directions, since the gradients of a perfect fit vanish."""
        generator = torch.Generator().manual_seed(0)
        factor = torch.randn(outputs.shape, generator=generator).to(outputs)
        return self._one_by_one(self._parameters, x, factor), factor

    @staticmethod
    def _disagree(name: str, found: Squares, truth: Squares, largest: Tensor) -> bool:
        """Whether gradients (roots of squares) differ by more than rounding, anywhere."""
        if name not in found or name not in truth:
            return name in found or name in truth
        root = truth[name].sqrt()
        tolerance, rounding = _tolerances(root.dtype)
        close = (found[name].sqrt() - root).abs() <= tolerance * root + rounding * largest
        return not bool(close.all())

    def _of_layers(self, prefixes: Iterable[str]) -> set[str]:
        """Names of the wanted parameters that belong to layers."""
        return {
            full_name
            for prefix in prefixes
            for name, _ in self._model.get_submodule(prefix).named_parameters(recurse=False)
            if (full_name := f"{prefix}.{name}".lstrip(".")) in self._parameters
        }

    def _by_vmap(self, names: list[str], x: Tensor, factor: Tensor) -> Squares:
        total: Squares = {}
        for _, gradients in self._vmapped_gradients(names, x, factor):
            for name, g in gradients.items():
                total[name] = total.get(name, 0) + g.square().sum(0)
        return total

    def _one_by_one(self, names: Iterable[str], x: Tensor, factor: Tensor) -> Squares:
        total: Squares = {}
        for _, gradients in self._single_gradients(names, x, factor):
            for name, g in gradients.items():
                total[name] = total.get(name, 0) + g[0].square()
        return total

    def _vmapped_gradients(
        self, names: list[str], x: Tensor, factor: Tensor
    ) -> Iterator[tuple[slice, Squares]]:
        """Gradients (b, …) of samples, some at a time."""
        if not names:
            return
        everything = {n: p.detach() for n, p in self._model.named_parameters()}
        chosen = {n: everything.pop(n) for n in names}
        label = () if self._label is None else (int(self._label),)

        def weighted_output(chosen: Squares, xi: Tensor, ci: Tensor) -> Tensor:
            out = functional_call(self._model, {**everything, **chosen}, (xi[None], *label))
            return (out[0] * ci).sum()

        gradients = vmap(grad(weighted_output), in_dims=(None, 0, 0))
        step = max(1, _BUDGET // sum(p.numel() for p in chosen.values()))
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
                found = gradients(chosen, x[rows], factor[rows])
            yield rows, found

    def _single_gradients(
        self, names: Iterable[str], x: Tensor, factor: Tensor
    ) -> Iterator[tuple[slice, Squares]]:
        """Gradients (1, …) of one sample at a time; parameters without any are left out."""
        chosen = {n: self._parameters[n] for n in names}
        if not chosen:
            return
        for n in range(len(x)):
            rows = slice(n, n + 1)
            out = self._model(*self._arguments(x[rows]))
            if not out.requires_grad:
                continue
            found = torch.autograd.grad(out, [*chosen.values()], factor[rows], allow_unused=True)
            yield (
                rows,
                {
                    name: g.to_dense()[None]
                    for name, g in zip(chosen, found, strict=True)
                    if g is not None
                },
            )


def _largest(squares: Squares) -> Tensor:
    """The largest gradient of all."""
    return torch.stack([square.max() for square in squares.values()]).max().sqrt()


def _tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """Relative to a number itself, and to the largest of its kind."""
    eps = torch.finfo(dtype).eps
    return eps**0.3, min(1e2 * eps, eps**0.5)


class _Call(NamedTuple):
    """One call of a layer: how to get its squared gradients once its output's is known."""

    prefix: str
    layer: nn.Module
    rule: FisherRule
    inputs: Tensor
    output_gradient: list[Tensor]  # filled by the backward pass


class _Calls(list[_Call]):
    """Calls in order, and the leaves at which their common backward pass ends."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves: list[Tensor] = []

    def repeated(self) -> set[str]:
        """Layers that were called more than once."""
        times = Counter(call.prefix for call in self)
        return {prefix for prefix, n in times.items() if n > 1}


@contextmanager
def _recorded_layers(model: nn.Module, rules: Mapping[str, FisherRule]) -> Iterator[_Calls]:
    """Hooks that record inputs and output gradients of the layers that have rules.

    No parameter requires grad inside, so the backward pass forms no gradients of weights.
    """
    calls = _Calls()
    trainable = [p for p in model.parameters() if p.requires_grad]

    def record(prefix: str, rule: FisherRule) -> Callable[..., Tensor]:
        def hook(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
            if not isinstance(output, Tensor) or not torch.is_grad_enabled():
                return output
            if not output.requires_grad:  # nothing before it is differentiated: start here
                leaf = torch.zeros((), dtype=output.dtype, device=output.device)
                calls.leaves.append(leaf.requires_grad_())
                output = output + leaf
            inputs = (*args, *kwargs.values())[0]
            call = _Call(prefix, layer, rule, inputs.detach(), [])
            output.register_hook(call.output_gradient.append)
            calls.append(call)
            return output

        return hook

    handles = [
        model.get_submodule(prefix).register_forward_hook(record(prefix, rule), with_kwargs=True)
        for prefix, rule in rules.items()
    ]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield calls
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _by_rule(
    calls: _Calls,
    outputs: Tensor,
    factor: Tensor,
    names: Collection[str],
    scale: Tensor | None = None,
) -> Squares:
    """Sums of squares over samples, in layers that have parameters of these names.

    With ``scale`` (B,), each sample's gradients are multiplied by its own first.
    """
    total: Squares = {}
    if not calls.leaves or not outputs.requires_grad:
        return total
    torch.autograd.grad(outputs, calls.leaves, factor, retain_graph=True, allow_unused=True)
    for prefix, layer, rule, inputs, output_gradient in calls:
        if not output_gradient:  # the output was not used
            continue
        gradient = output_gradient.pop()
        own = {f"{prefix}.{n}".lstrip(".") for n, _ in layer.named_parameters(recurse=False)}
        if own.isdisjoint(names):
            continue
        if scale is not None:
            gradient = gradient * scale.view(-1, *[1] * (gradient.dim() - 1))
        for name, square in rule(layer, inputs, gradient).items():
            full_name = f"{prefix}.{name}".lstrip(".")
            total[full_name] = total.get(full_name, 0) + square
    return total


def refuse_batch_statistics(model: nn.Module) -> None:
    """Check that no layer of a model in evaluation mode normalises over the batch.

    Raises:
        ValueError: naming the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        ):
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) normalises with the statistics of the "
                "batch even in evaluation mode, so samples have no gradients of their own; use "
                "track_running_stats=True and let it follow model.eval(), or another normalisation"
            )
