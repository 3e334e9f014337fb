"""A network, its hypernetwork, a regulariser and the strategy that trains them, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from avalanche.core import BasePlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from torch import nn
from torch.optim import Adam, Optimizer

from avalanche_hnet.core.common.likelihoods import Likelihood
from avalanche_hnet.core.hypernetworks.chunked import ChunkedHyperNetwork
from avalanche_hnet.core.hypernetworks.network import HypernetInit, HyperNetwork
from avalanche_hnet.core.regularizers import FixedTarget
from avalanche_hnet.models.hyper_model import HyperModel
from avalanche_hnet.strategies.hypernet import HypernetTemplate
from avalanche_hnet.strategies.loop_arguments import Criterion, PeriodicEvaluation, check_loop
from avalanche_hnet.strategies.optimizers import MakeOptimizer


class Hypernet(HypernetTemplate):
    """Learns any network through a hypernetwork that is kept from forgetting earlier tasks.

    Continual learning with hypernetworks (von Oswald et al. 2020, arXiv 1906.00695) with a
    :class:`HyperModel` of the network, in which each task generates all weights, a
    :class:`HyperNetwork`, or :class:`ChunkedHyperNetwork`, and :class:`FixedTarget`. For other
    regularisers and the options of these parts, make them and pass them to
    :class:`HypernetTemplate`, which documents how it trains and what it publishes.

    Args:
        model: the main network, any module of fixed size. It is copied; what is trained is
            ``strategy.model``, the :class:`HyperModel`.
        optimizer: makes the optimizer from the parameters of the hypernetwork, which do not exist
            before: ``functools.partial(torch.optim.Adam, lr=1e-4)``; None: Adam with a learning
            rate of 0.001.
        criterion: called with outputs and targets; None: ``nn.CrossEntropyLoss()``.
        beta: strength β of :class:`FixedTarget`; 0 is fine-tuning.
        embedding_dim: size of a task's embedding.
        hidden: widths of the hypernetwork's hidden layers. Its output layer has the last of them
            times ``chunk_size`` weights.
        chunk_size: weights that are generated at a time; None: all.
        chunk_embedding_dim: size of a chunk's embedding; None: as ``embedding_dim``.
        init: ``"hyperfan"``: generated weights start at the scale that the network wants, or
            ``"default"``, PyTorch's own initialisation of the hypernetwork.
        prior_variance: σ² of a prior over the generated weights; None: no prior.
        clip_grad_norm: largest norm of the gradient; None: no bound.
        likelihood: for the prior; None: read off the criterion.
        log_every: iterations between two published losses.
        in_memory: serve the data from memory; turn it off for random transforms.
        train_mb_size: samples of a batch in training.
        train_epochs: epochs of each experience.
        eval_mb_size: samples of a batch in evaluation; None: as in training.
        device: where the model is trained.
        plugins: Avalanche's and ours.
        evaluator: computes and logs metrics, or makes what does; None: no metrics.
        eval_every: evaluate during training: never (-1), at the end (0), or also every so many
            epochs or iterations.
        peval_mode: what ``eval_every`` counts.

    Raises:
        TypeError, ValueError: if an argument is out of its range, or goes with another that is
            missing. While training: as :class:`HypernetTemplate`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: MakeOptimizer | None = None,
        criterion: Criterion | None = None,
        beta: float = 0.01,
        embedding_dim: int = 32,
        hidden: Sequence[int] = (32,),
        chunk_size: int | None = None,
        chunk_embedding_dim: int | None = None,
        init: HypernetInit = "hyperfan",
        prior_variance: float | None = None,
        clip_grad_norm: float | None = None,
        likelihood: Likelihood | None = None,
        log_every: int = 50,
        in_memory: bool = True,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None = default_evaluator,
        eval_every: int = -1,
        peval_mode: PeriodicEvaluation = "epoch",
    ) -> None:
        check_loop(
            criterion=criterion,
            plugins=plugins,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
        _check_parts(model, optimizer)
        regularizer = FixedTarget(beta)
        hypernetwork = _hypernetwork(
            model, embedding_dim, hidden, chunk_size, chunk_embedding_dim, init
        )
        hyper_model = HyperModel(model, hypernetwork)
        super().__init__(
            model=hyper_model,
            optimizer=_made_optimizer(optimizer, hyper_model),
            regularizer=regularizer,
            prior_variance=prior_variance,
            clip_grad_norm=clip_grad_norm,
            likelihood=likelihood,
            log_every=log_every,
            in_memory=in_memory,
            criterion=nn.CrossEntropyLoss() if criterion is None else criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )


def _check_parts(model: object, optimizer: object) -> None:
    if isinstance(model, HyperModel):
        raise TypeError(
            "model is a HyperModel already; pass the main network, or train it with "
            "HypernetTemplate"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, the main network, got {model!r}")
    if optimizer is not None and (isinstance(optimizer, Optimizer) or not callable(optimizer)):
        is_made = isinstance(optimizer, Optimizer)  # whose repr has many lines
        got = (
            f"one that is made already, {type(optimizer).__name__}" if is_made else repr(optimizer)
        )
        raise TypeError(
            "optimizer must be a function that makes an optimizer of the hypernetwork's "
            f"parameters, such as functools.partial(torch.optim.Adam, lr=1e-3), or None, got {got}"
        )


def _hypernetwork(
    target: nn.Module,
    embedding_dim: int,
    hidden: Sequence[int],
    chunk_size: int | None,
    chunk_embedding_dim: int | None,
    init: HypernetInit,
) -> HyperNetwork:
    if chunk_size is None:
        if chunk_embedding_dim is not None:
            raise ValueError(
                f"chunk_embedding_dim={chunk_embedding_dim} needs a chunk_size: without, all "
                "weights are generated at a time"
            )
        return HyperNetwork(target, embedding_dim=embedding_dim, hidden=hidden, init=init)
    return ChunkedHyperNetwork(
        target,
        chunk_size=chunk_size,
        chunk_embedding_dim=embedding_dim if chunk_embedding_dim is None else chunk_embedding_dim,
        embedding_dim=embedding_dim,
        hidden=hidden,
        init=init,
    )


def _made_optimizer(make: MakeOptimizer | None, model: HyperModel) -> Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    made = Adam(parameters, 1e-3) if make is None else make(parameters)
    if not isinstance(made, Optimizer):
        raise TypeError(f"optimizer must make an optimizer, but made {made!r}")
    return made
