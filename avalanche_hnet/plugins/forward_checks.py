"""Whether a strategy trains the function of the inputs that the Fisher is of."""

from __future__ import annotations

import torch
from avalanche.models.utils import avalanche_forward, is_multi_task_module
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.problem_type import SupervisedProblem

from avalanche_hnet.core.common.evaluation import undisturbed
from avalanche_hnet.core.common.logits import logits_of
from avalanche_hnet.plugins.processes import model_of


def refuse_other_forward(strategy: SupervisedTemplate) -> None:
    """Refuse a ``forward`` of the strategy's own that does not call the model with ``mb_x`` alone.

    Raises:
        ValueError: if its outputs for the present batch are others, or the model wants more.
    """
    if type(strategy).forward is SupervisedProblem.forward:
        return
    name, model = type(strategy).__name__, model_of(strategy)
    labels = strategy.mb_task_id if is_multi_task_module(model) else None
    remedy = (
        "the Fisher is of the model as a function of mb_x alone; let the model's forward take all "
        "that it needs in mb_x, which may be a dictionary of tensors"
    )
    with undisturbed(model), torch.no_grad():
        trained = logits_of(strategy.forward())
        try:
            alone = logits_of(avalanche_forward(model, strategy.mb_x, labels))
        except Exception as error:
            raise ValueError(
                f"{name}.forward() calls {type(model).__name__} in another way than model(mb_x), "
                f"which fails ({error}); {remedy}"
            ) from error
    # Autocast in forward() leaves about 1 %.
    if trained.shape != alone.shape or not (trained - alone).norm() <= 0.05 * alone.norm():
        raise ValueError(f"{name}.forward() gives other outputs than model(mb_x); {remedy}")
