"""Squared per-sample gradients of any module, by the cheapest method that gets them right."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from avalanche_hnet.core.fisher.batch_statistics import refuse_batch_statistics
from avalanche_hnet.core.fisher.by_rule import NotDifferentiableError
from avalanche_hnet.core.fisher.choice import Choice, choose, choose_again
from avalanche_hnet.core.fisher.layer_rules import layers_with_rules
from avalanche_hnet.core.fisher.methods import ByName
from avalanche_hnet.core.fisher.one_task import OneTask
from avalanche_hnet.core.fisher.recording import Recording, record


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

    Attributes:
        choice: which parameters go by which method, as far as the batches so far have shown.

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
        label = labels[:1] if isinstance(labels, Tensor) else labels
        self._task = OneTask(model, parameters, label)
        self._rules = layers_with_rules(model)
        self.choice = _announced(choose(self._task, self._rules, x))

    def forward(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], ByName]]:
        """Outputs (B, …), and a function from c (of their shape) to Σ_n (J_nᵀ c_n)² by name."""
        outputs, recording = record(self._task, x, self._rules)
        if repeated := self._repeated(recording):
            self.choice = _announced(choose_again(self.choice, repeated, self._task, x))
        methods = self.choice.methods(self._task, self._rules, x, outputs, recording)

        def squares(factor: Tensor) -> ByName:
            return {n: s for method in methods for n, s in method.squares(factor).items()}

        return outputs.detach(), squares

    def forward_weighted(
        self, x: Tensor, weights: Mapping[str, Tensor]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Outputs (B, …), and a function from c to Σ_i w_i (J_nᵀ c_n)_i² for each sample n, (B,).

        There are weights for all parameters.
        """
        outputs, recording = record(self._task, x, self._rules)
        if repeated := self._repeated(recording):
            self.choice = _announced(choose_again(self.choice, repeated, self._task, x))

        def sums(factor: Tensor) -> Tensor:
            total = factor.new_zeros(len(x))
            methods = self.choice.methods(self._task, self._rules, x, outputs, recording)
            try:
                for method in methods:
                    method.add_weighted(total, weights, factor)
            except NotDifferentiableError as error:
                constant = error.names
            else:
                return total.detach()
            self.choice = _announced(choose_again(self.choice, constant, self._task, x))
            return sums(factor)

        return outputs.detach(), sums

    def _repeated(self, recording: Recording) -> set[str]:
        """Parameters by rule whose layers were called twice, in this batch but not in the trial."""
        return self._task.of_layers(recording.repeated()) & self.choice.by_rule


def _announced(choice: Choice) -> Choice:
    """The choice itself, with a warning where it is slow."""
    if choice.by_loop:
        warnings.warn(
            f"squared gradients of {', '.join(choice.by_loop)} are computed one sample at a "
            "time, since neither a Fisher rule nor torch.func.vmap covers them",
            stacklevel=4,  # the caller of diagonal_fisher
        )
    return choice
