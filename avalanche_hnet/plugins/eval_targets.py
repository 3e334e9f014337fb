"""The refusal of targets that a model which is evaluated has no output for."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from avalanche_hnet.core.common.likelihoods import Categorical, likelihood_of
from avalanche_hnet.core.common.logits import logits_of
from avalanche_hnet.data.experiences import stated_classes


class EvalTargetsPlugin(SupervisedPlugin):
    """Base of a plugin that refuses such targets by name, before the criterion stumbles."""

    def after_eval_forward(self, strategy: SupervisedTemplate, **kwargs: Any) -> None:
        """Refuse targets that the model has no output for."""
        check_eval_targets(strategy)


def check_eval_targets(strategy: SupervisedTemplate) -> None:
    """Refuse the class labels of a batch that the model which is evaluated has no outputs for.

    On a GPU, which would have to be waited for, only where the experience states such classes.

    Raises:
        ValueError: naming experience and labels.
    """
    likelihood, targets = likelihood_of(strategy._criterion), strategy.mb_y
    if not isinstance(likelihood, Categorical) or not isinstance(strategy.mb_output, Tensor):
        return
    outputs = logits_of(strategy.mb_output)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or outputs.dim() < 2:
        return
    n_outputs = outputs.shape[1]
    stated = stated_classes(strategy.experience) or []
    if not targets.is_cpu and all(0 <= c < n_outputs for c in stated):
        return
    labels = targets[targets != likelihood.ignore_index]
    if labels.numel() == 0 or 0 <= labels.min() <= labels.max() < n_outputs:
        return
    raise ValueError(
        f"experience {strategy.experience.current_experience}, which is evaluated, has targets "
        f"from {int(labels.min())} to {int(labels.max())}, but the model has {n_outputs} outputs, "
        f"for classes from 0 to {n_outputs - 1}; give it more, or evaluate the experiences whose "
        "classes it has"
    )
