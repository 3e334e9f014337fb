"""The comparison of fast methods with single samples, on a few of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_hnet.core.common.samples import Samples, joined
from avalanche_hnet.core.fisher.alignment import random_factor
from avalanche_hnet.core.fisher.by_loop import ByLoop
from avalanche_hnet.core.fisher.graph import dtypes_in_graph
from avalanche_hnet.core.fisher.layer_rows import LayerRows
from avalanche_hnet.core.fisher.layer_rules import FisherRule
from avalanche_hnet.core.fisher.methods import ByName, at_least_single
from avalanche_hnet.core.fisher.one_task import OneTask
from avalanche_hnet.core.fisher.precision import coarsest
from avalanche_hnet.core.fisher.recording import Recording, record

# Samples on which methods are tried: two show whether samples mix.
N_TRIAL = 2


@dataclass(frozen=True, eq=False)
class Trial:
    """A few samples with their true squared gradients.

    Attributes:
        x: inputs (B, …).
        outputs: for these (B, …).
        singles: the outputs for each of these alone, (B, …).
        recording: the calls of layers that they are made of.
        factor: random factors of the outputs, since the gradients of a perfect fit vanish.
        truth: squared gradients from single samples; parameters without gradients are left out.
        sums: their gradients with signs, of the layers with a Kronecker rule.
        largest: of the elements of each of these.
        dtype: the coarsest floating-point type on the way.
        covered: names of the parameters of the recorded layers.
    """

    x: Tensor | Samples
    outputs: Tensor
    singles: Tensor
    recording: Recording
    factor: Tensor
    truth: ByName
    sums: ByName
    largest: dict[str, float]
    dtype: torch.dtype
    covered: set[str]

    def disagreeing(
        self,
        names: Collection[str],
        squares: ByName,
        layer_of: Callable[[str], str] | None = None,
    ) -> set[str]:
        """Names whose gradients (roots of squares) are wrong by more than rounding, anywhere.

        That includes those that are there and should not be, or the reverse. Rounding is
        relative to the largest gradient of the parameter itself or, if ``layer_of`` says to
        which layer it belongs, of that layer: a bias before a softmax has gradients that are
        nothing but rounding.
        """
        tolerance, rounding = tolerances(self.dtype)
        wrong = set()
        for name in names:
            if name not in squares or name not in self.truth:
                there = [s[name] for s in (squares, self.truth) if name in s]
                is_right = not any(square.any() for square in there)
            elif self.truth[name].numel() == 0:
                is_right = True
            else:
                # |√s − √t| ≤ tolerance √t + rounding √largest, without roots, to a factor of 2.
                truth = self.truth[name]
                excess = (squares[name] - truth).abs_().sub_(truth, alpha=tolerance).max()
                is_right = float(excess) <= rounding**2 * self._scale(name, layer_of)
            if not is_right:
                wrong.add(name)
        return wrong

    def disagreeing_sums(
        self, sums: ByName, layer_of: Callable[[str], str] | None = None
    ) -> set[str]:
        """Names in ``sums`` whose gradients, with signs and summed over samples, are wrong."""
        tolerance, rounding = tolerances(self.dtype)
        wrong = set()
        for name, total in sums.items():
            truth = self.sums.get(name)
            error = total.abs() if truth is None else (total - truth).abs_()
            if truth is not None:
                error.sub_(truth.abs(), alpha=tolerance)
            limit = rounding * (len(self.x) * self._scale(name, layer_of)) ** 0.5
            if error.numel() and not bool(error.max() <= limit):
                wrong.add(name)
        return wrong

    def active(self, names: Iterable[str]) -> set[str]:
        """Those that have gradients other than zero here."""
        return {name for name in names if self.largest.get(name, 0) > 0}

    def _scale(self, name: str, layer_of: Callable[[str], str] | None) -> float:
        """The largest square of the parameter or of its layer."""
        if layer_of is None:
            return self.largest.get(name, 0.0)
        layer = layer_of(name)
        return max((s for n, s in self.largest.items() if layer_of(n) == layer), default=0.0)


def make_trial(task: OneTask, rules: Mapping[str, FisherRule], x: Tensor | Samples) -> Trial:
    """The trial on a few inputs ``x`` of one and the same task.

    Raises:
        LostDimensionError: if the output for one sample has not the shape that it has in a batch.
        ValueError: if the output for a sample depends on the other samples of its batch.
    """
    if len(x) == 1:
        x = joined([x, x])
    outputs, recording = record(task, x, rules)
    if outputs.dim() == 0 or len(outputs) != len(x):
        raise ValueError(
            f"model must return outputs with the samples in dimension 0, ({len(x)}, …) for "
            f"{len(x)} samples; got {tuple(outputs.shape)}"
        )
    factor = random_factor(outputs)
    singles: list[Tensor] = []
    truth: ByName = {}
    sums: ByName = {}
    signed = task.of_layers(p for p, rule in rules.items() if isinstance(rule, LayerRows))
    for _, single, gradients in ByLoop(task.parameters, task, x).outputs_and_gradients(factor):
        singles.append(single)
        for name, gradient in gradients.items():
            of_sample = at_least_single(gradient)
            if name in truth:
                truth[name].addcmul_(of_sample, of_sample)
            else:
                truth[name] = of_sample.square()
            if name in signed:
                sums[name] = sums[name] + of_sample if name in sums else of_sample
    dtypes = {outputs.dtype, *recording.dtypes()}
    covered = task.of_layers(rules)
    if not task.parameters.keys() <= covered:  # layers that were not recorded
        dtypes |= dtypes_in_graph(outputs)
    dtype = coarsest(dtypes)
    together = outputs.detach()
    alone = torch.cat(singles) if singles else together
    refuse_mixed_samples(alone, together, dtype)
    largest = {name: float(square.max()) for name, square in truth.items() if square.numel()}
    return Trial(x, outputs, alone, recording, factor, truth, sums, largest, dtype, covered)


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """Relative to a number itself, and to the largest of its kind."""
    eps = torch.finfo(dtype).eps
    return eps**0.3, min(1e2 * eps, eps**0.5)


def refuse_mixed_rows(
    task: OneTask, x: Tensor | Samples, outputs: Tensor, recording: Recording
) -> None:
    """:func:`refuse_mixed_samples` for the last rows of a batch that is larger than a trial.

    What has room for so many samples, such as an expert, shows it there.

    Args:
        task: the model.
        x: the batch.
        outputs: of the batch (B, …).
        recording: the calls of layers with rules behind them.

    Raises:
        ValueError: see :func:`refuse_mixed_samples`.
    """
    with torch.no_grad():
        alone = task.outputs(x[-N_TRIAL:])
    dtype = coarsest(recording.dtypes() | dtypes_in_graph(outputs))
    refuse_mixed_samples(alone, outputs[-N_TRIAL:].detach(), dtype)


def refuse_mixed_samples(singles: Tensor, batched: Tensor, dtype: torch.dtype) -> None:
    """Check that samples have the same outputs (B, …) alone and together, up to rounding.

    Raises:
        ValueError: if the output for a sample depends on the other samples of its batch.
    """
    if batched.numel() == 0:
        return
    tolerance, rounding = tolerances(dtype)
    sizes = singles.abs()
    limit = sizes.amax(0).add_(sizes.max(), alpha=rounding)
    excess = (batched - singles).abs_().sub_(limit, alpha=tolerance).max()
    if not float(excess) <= 0:  # which NaN is not either
        raise ValueError(
            "model gives a sample different outputs alone and in a batch, or from call to "
            "call, in evaluation mode, so it has no per-sample gradients; look for layers "
            "that mix samples (batch statistics) or draw random numbers (dropout) in "
            "evaluation mode"
        )
