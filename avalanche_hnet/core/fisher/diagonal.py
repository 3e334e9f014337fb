"""Diagonal Fisher information of any ``nn.Module``, exact to rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from avalanche_hnet.core.common.evaluation import undisturbed, usable
from avalanche_hnet.core.common.likelihoods import Categorical, Gaussian, Likelihood
from avalanche_hnet.core.common.samples import Samples, as_samples, structure_of
from avalanche_hnet.core.common.structures import described, map_tensors
from avalanche_hnet.core.common.task_labels import takes_task_labels
from avalanche_hnet.core.fisher.methods import ByName, at_least_single
from avalanche_hnet.core.fisher.squared_gradients import SquaredGradients
from avalanche_hnet.core.fisher.trial import N_TRIAL

FisherKind = Literal["empirical", "sampled", "exact"]

# In batches that are mappings: as Hugging Face and as Avalanche name them.
_OF_REAL, _OF_CLASSES = Gaussian(), Categorical()
_TARGETS, _TASK_LABELS = "labels", "targets_task_labels"


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    likelihood: Likelihood | None = None,
    kind: FisherKind = "empirical",
    max_samples: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information matrix, averaged over samples.

    F_i = 1/N Σ_n E_y[(∂/∂φ_i −log p(y | x_n, φ))²], where y is

    - ``"empirical"``: the label y_n of the data, without expectation;
    - ``"sampled"``: one label drawn from the model's own p(y | x_n, φ);
    - ``"exact"``: every label, weighted by p(y | x_n, φ), at one backward pass per output unit.

    Kunstner et al. 2019 (arXiv 1905.12558) and van de Ven 2025 (arXiv 2502.11756) discuss the
    difference. The model runs in evaluation mode; its modes, its gradients and the state of all
    random number generators except ``generator`` are afterwards what they were before.

    Layers with a rule (:func:`register_fisher_rule`) cost together one forward and one backward
    pass. A rule is tried on single samples, in float32 or better, when its layer first has
    gradients, and holds for a batch only if the samples are in dimension 0 of its layer's one
    call. What rules do not cover or get wrong is done by ``vmap(grad)`` in bounded memory or,
    where ``vmap`` cannot follow the model, one sample at a time, with a warning. The result is
    the same, also for models that ``squeeze()`` a batch of one, checkpoints, autocast inside the
    model, and in inference mode.

    Args:
        model: called as ``model(x)``, or as ``model(x, task_labels)`` if its ``forward`` takes
            task labels and the batches have them. What it returns may have more in it than the
            logits (:func:`logits_of`).
        batches: yields ``(x, y)`` or ``(x, y, …, task_labels)``, where ``x`` is a tensor or a
            mapping, tuple or dataclass of tensors, samples in dimension 0 of each; or mappings
            with the targets under ``"labels"``, task labels under ``"targets_task_labels"`` if
            there are any, and ``x`` in the others.
        likelihood: by default :class:`Categorical` for integer targets and :class:`Gaussian`
            with standard deviation 1 for real ones.
        kind: see above.
        max_samples: use at most so many samples, drawn uniformly without replacement, which
            leaves the estimate of the mean unbiased. Batches may be padded to different lengths.
        generator: draws labels and samples; by default PyTorch's global one, which is then
            restored, so that a second call draws the same.

    Returns:
        For each parameter that requires grad, by name, a non-negative tensor of its shape and
        type (float32 where that is half precision).

    Raises:
        ValueError: for an unknown ``kind``, ``max_samples`` below 1, no samples, a model without
            parameters that require grad, or one whose output for a sample depends on the other
            samples of the batch.
    """
    if kind not in get_args(FisherKind):
        raise ValueError(f"kind must be one of {get_args(FisherKind)}, got {kind!r}")
    if max_samples is not None and (not isinstance(max_samples, int) or max_samples < 1):
        raise ValueError(f"max_samples must be an integer of at least 1, got {max_samples}")
    if likelihood is not None and not isinstance(likelihood, Likelihood):
        raise TypeError(f"likelihood must be a Likelihood, got {likelihood!r}")
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("model has no parameter that requires grad, so it has no Fisher")

    device = next(iter(parameters.values())).device
    n_samples = 0
    gradients: dict[tuple[int | None, int, tuple[Any, ...]], SquaredGradients] = {}
    with undisturbed(model), torch.inference_mode(False), torch.enable_grad():
        batches = (_columns(batch) for batch in batches)
        fisher = _Sum()
        if max_samples is not None:
            batches = _random_subset(batches, max_samples, generator)
        for batch in batches:
            for x, y, labels in _single_task_batches(model, batch, device):
                label = None if labels is None else int(labels[0])
                inputs = (label, min(len(x), N_TRIAL), x.shape[1:])
                if inputs not in gradients:
                    gradients[inputs] = SquaredGradients(model, parameters, x, labels)
                outputs, squares = gradients[inputs].forward(x)
                for factor in _fisher_factors(outputs, y, likelihood, kind, generator):
                    fisher.add(squares(factor))
                n_samples += len(x)
        if n_samples == 0:
            raise ValueError("batches must yield at least one sample, got none")
        return {name: fisher.mean(name, p, n_samples) for name, p in parameters.items()}


class _Sum:
    """Sums of tensors by name, which are not copied before there are several."""

    def __init__(self) -> None:
        self._totals: ByName = {}
        self._of_several: set[str] = set()

    def add(self, terms: ByName) -> None:
        for name, term in terms.items():
            if name in self._of_several:
                self._totals[name] += term
            elif name in self._totals:
                self._totals[name] = self._totals[name] + term
                self._of_several.add(name)
            else:
                self._totals[name] = term

    def mean(self, name: str, like: Tensor, number: int) -> Tensor:
        """The sum divided by a number, as ``like`` but in float32 at least; 0 of no terms."""
        like = at_least_single(like)
        if name not in self._totals:
            return torch.zeros_like(like)
        return (self._totals[name] / number).to(like)


def _fisher_factors(
    outputs: Tensor,
    targets: Tensor,
    likelihood: Likelihood | None,
    kind: FisherKind,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """Tensors c_k (B, …) such that the Fisher of sample n is Σ_k (J_nᵀ c_kn)²."""
    if likelihood is None:
        likelihood = _OF_REAL if targets.is_floating_point() else _OF_CLASSES
    counted = None if kind == "empirical" else likelihood.counted(outputs, targets)
    if kind == "exact":
        for factor in likelihood.fisher_factors(outputs):
            yield factor if counted is None else factor * counted
        return
    if kind == "sampled":
        targets = likelihood.sample(outputs, generator)
    gradient = likelihood.nll_gradient(outputs, targets)
    yield gradient if counted is None else gradient * counted


def _single_task_batches(
    model: nn.Module, batch: Sequence[Any], device: torch.device
) -> Iterator[tuple[Tensor | Samples, Tensor, Tensor | None]]:
    """The batch as ``(x, y, task_labels)``, split by task if the model takes task labels."""
    x, y = usable(batch[0].to(device)), usable(batch[1].to(device))
    if len(x) == 0:
        return
    if len(batch) == 2 or not takes_task_labels(model):
        yield x, y, None
        return
    labels = batch[-1].to(device)
    for label in labels.unique():
        chosen = labels == label
        yield x[chosen], y[chosen], labels[chosen]


def _columns(batch: Any) -> list[Any]:
    """``[x, y]`` or ``[x, y, task_labels]`` of a batch."""
    if isinstance(batch, Mapping) and _TARGETS in batch:
        names = [name for name in (_TARGETS, _TASK_LABELS) if name in batch]
        x = {name: values for name, values in batch.items() if name not in names}
        return [as_samples(x), *(batch[name] for name in names)]
    if isinstance(batch, Mapping) or not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise ValueError(
            "batches must yield (x, y) or (x, y, ..., task_labels), or mappings with the targets "
            f"under {_TARGETS!r}, got {described(batch)}"
        )
    return [as_samples(batch[0]), batch[1], *batch[2:][-1:]]


def _random_subset(
    batches: Iterable[Sequence[Any]], size: int, generator: torch.Generator | None
) -> Iterator[Sequence[Any]]:
    """One pass over ``batches`` that keeps the ``size`` samples with the smallest random keys."""
    kept: dict[str, tuple[Tensor, list[Any]]] = {}
    step = 1
    for batch in batches:
        step = max(step, len(batch[0]))
        device = torch.device("cpu") if generator is None else generator.device
        drawn = torch.rand(len(batch[0]), generator=generator, device=device, dtype=torch.float64)
        form = _form(batch)
        keys, values = kept.get(form, (drawn[:0].cpu(), [v[:0] for v in batch]))
        keys = torch.cat([keys, drawn.cpu()])
        kept[form] = keys, [torch.cat(pair) for pair in zip(values, batch, strict=True)]
        every_key = torch.cat([keys for keys, _ in kept.values()])
        if len(every_key) > size:
            last = every_key.topk(size, largest=False).values.max()
            kept = {f: _chosen(keys <= last, keys, values) for f, (keys, values) in kept.items()}
    for _, tensors in kept.values():
        yield from zip(*(values.split(step) for values in tensors), strict=True)


def _form(batch: Sequence[Any]) -> str:
    """Equal for batches whose samples can be put together: in the same structure and shapes."""
    return repr([map_tensors(_kind, structure_of(values)) for values in batch])


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, *tensor.shape[1:]


def _chosen(mask: Tensor, keys: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    return keys[mask], [values[mask.to(values.device)] for values in tensors]
