"""Online EWC with an explicit prior, as a strategy for Avalanche."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from avalanche.core import BasePlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import Optimizer

from avalanche_hnet.core.common.likelihoods import Likelihood
from avalanche_hnet.core.fisher.kronecker_sums import WeightSharing
from avalanche_hnet.core.fisher.options import FisherKind
from avalanche_hnet.core.posterior.gaussian import PriorMean
from avalanche_hnet.core.posterior.protocol import Posterior
from avalanche_hnet.core.posterior.structure import Structure
from avalanche_hnet.plugins.penalty_step import PenaltyStep
from avalanche_hnet.plugins.prior_ewc import PriorEWCPlugin
from avalanche_hnet.strategies.any_batches import AnyBatches
from avalanche_hnet.strategies.goes_on import GoesOn
from avalanche_hnet.strategies.loop_arguments import Criterion, PeriodicEvaluation, check_loop


class PriorEWC(AnyBatches, GoesOn, SupervisedTemplate):
    """Fine-tuning with a :class:`PriorEWCPlugin`, as Avalanche's ``EWC`` is with its ``EWCPlugin``.

    The plugin's documentation has the formulas and what is published. Combined with other
    strategies, such as replay, use the plugin itself.

    What is known from Avalanche's ``EWC`` (Kirkpatrick et al. 2017) is here

    - ``ewc_lambda``: ``ewc_lambda``, per sample: 1 is the Bayesian update, and its size does not
      depend on batches;
    - ``mode="onlinesum"``: ``gamma=1``, one precision, summed over experiences;
    - ``mode="onlineweightedsum"`` with ``decay_factor``: ``gamma``, how much of the precision is
      kept (γ Λ + N F);
    - ``mode="separate"``: none, since the sum of the experiences' penalties around their own means
      is not a posterior (Huszár 2018, arXiv 1712.03847); ``gamma=1`` is closest;
    - ``keep_importance_data``: none, as there is one posterior whatever the number of experiences;
      it is :attr:`posterior`, with mean, precision and ``state_dict``.

    Args:
        model: any module.
        optimizer: of the model's parameters.
        criterion: called with outputs and targets; None: ``nn.CrossEntropyLoss()``.
        ewc_lambda: see :class:`PriorEWCPlugin`, as for all up to ``max_rank``: λ ≥ 0.
        prior_variance: σ² > 0.
        gamma: γ in [0, 1].
        fisher: ``"empirical"``, ``"sampled"`` or ``"exact"``.
        n_fisher: number of samples for the Fisher; None: all.
        likelihood: None: read off the criterion.
        prior_mean: ``"zero"`` or ``"initial"``.
        train_from_scratch: forget the posterior at every experience.
        log_every: iterations between two published losses.
        generator: of random numbers for the Fisher; None: PyTorch's global state.
        penalty_step: ``"auto"``, ``"implicit"`` or ``"gradient"``.
        structure: ``"diagonal"`` or ``"kronecker"``.
        rank: of ``"kronecker"``: products that are kept for a layer; None: one for each experience.
        weight_sharing: of ``"kronecker"``: ``"expand"`` or ``"reduce"``.
        max_rank: of ``"kronecker"``: of its factors in the penalty; None: all.
        train_mb_size: samples of a batch in training.
        train_epochs: epochs of each experience.
        eval_mb_size: samples of a batch in evaluation; None: as in training.
        device: where the model is trained.
        plugins: others besides the :class:`PriorEWCPlugin`, which comes last.
        evaluator: computes and logs metrics, or makes what does; None: no metrics.
        eval_every: evaluate during training: never (-1), at the end (0), or also every so many
            epochs or iterations.
        peval_mode: what ``eval_every`` counts.

    Raises:
        TypeError, ValueError: if an argument is out of its range, or a :class:`PriorEWCPlugin` is
            among the plugins. While training: as the plugin.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Criterion | None = None,
        ewc_lambda: float = 1.0,
        prior_variance: float = 1.0,
        gamma: float = 1.0,
        fisher: FisherKind = "empirical",
        n_fisher: int | None = None,
        likelihood: Likelihood | None = None,
        prior_mean: PriorMean = "zero",
        train_from_scratch: bool = False,
        log_every: int = 50,
        generator: torch.Generator | None = None,
        penalty_step: PenaltyStep = "auto",
        structure: Structure = "diagonal",
        rank: int | None = 1,
        weight_sharing: WeightSharing = "expand",
        max_rank: int | float | None = None,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None = default_evaluator,
        eval_every: int = -1,
        peval_mode: PeriodicEvaluation = "epoch",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                "optimizer must be an Optimizer, such as torch.optim.Adam(model.parameters()), got "
                f"{optimizer!r}"
            )
        check_loop(
            criterion=criterion,
            plugins=plugins,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
        if any(isinstance(plugin, PriorEWCPlugin) for plugin in plugins or ()):
            raise ValueError(
                "plugins has a PriorEWCPlugin, but PriorEWC makes its own from its arguments; "
                "leave it out, or use it with Naive"
            )
        self._prior_ewc = PriorEWCPlugin(
            ewc_lambda=ewc_lambda,
            prior_variance=prior_variance,
            gamma=gamma,
            fisher=fisher,
            n_fisher=n_fisher,
            likelihood=likelihood,
            prior_mean=prior_mean,
            train_from_scratch=train_from_scratch,
            log_every=log_every,
            generator=generator,
            penalty_step=penalty_step,
            structure=structure,
            rank=rank,
            weight_sharing=weight_sharing,
            max_rank=max_rank,
        )
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss() if criterion is None else criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=[*(plugins or ()), self._prior_ewc],
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )

    @property
    def posterior(self) -> Posterior:
        """The plugin's; save and load it with its ``state_dict``."""
        return self._prior_ewc.posterior
