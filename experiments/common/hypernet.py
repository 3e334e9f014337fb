"""The hypernetwork and its strategy, with every option on the command line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn

from avalanche_hnet import (
    EWC,
    ChunkedHyperNetwork,
    FixedTarget,
    HyperModel,
    HyperNetwork,
    Jacobian,
    Regularizer,
    ValuePreserving,
)
from experiments.common.settings import ActivationName

RegularizerName = Literal["fixed-target", "value-preserving", "jacobian", "ewc", "none"]

_OF_OUTPUTS = {
    "lookahead",
    "differentiable_lookahead",
    "mask_heads",
    "fisher_weights",
    "n_fisher",
    "tasks_per_step",
}
# Which of the options each regulariser takes, besides the strength.
OPTIONS: dict[RegularizerName, set[str]] = {
    "fixed-target": _OF_OUTPUTS | {"train_previous_embeddings", "targets"},
    "value-preserving": _OF_OUTPUTS,
    "jacobian": _OF_OUTPUTS,
    "ewc": {"online", "gamma", "n_fisher"},
    "none": set(),
}


@dataclass(frozen=True, kw_only=True)
class HypernetOptions:
    """Settings of the hypernetwork, its regulariser and its strategy."""

    regularizer: RegularizerName = "fixed-target"
    """What protects earlier tasks. Without, it is fine-tuning."""
    beta: float = 0.01
    """Strength of the regulariser."""
    lookahead: Literal["optimizer", "sgd"] | None = "optimizer"
    """The change of the weights that the regulariser looks ahead to."""
    differentiable_lookahead: bool = False
    """Differentiate through that change."""
    train_previous_embeddings: bool = False
    """Let fixed-target train embeddings of earlier tasks, too."""
    multi_head: bool = False
    """One wide output layer with units for each task, instead of a head that each task generates
    for itself."""
    mask_heads: bool = False
    """With multi-head, protect only the weights of each task's own output units."""
    fisher_weights: bool = False
    """Weigh each generated weight's deviation with its Fisher value."""
    n_fisher: int | None = None
    """Samples for the Fisher values. Default: all."""
    tasks_per_step: int | None = None
    """Regularise so many random tasks in each step. Default: all."""
    targets: Literal["recomputed", "stored"] = "recomputed"
    """Where fixed-target has its targets from."""
    online: bool = True
    """Of EWC: one posterior, rather than a penalty per experience."""
    gamma: float = 1.0
    """Of online EWC: how much of the precision is kept at each experience."""
    embedding_dim: int = 32
    """Size of a task's embedding."""
    hidden: tuple[int, ...] = (10, 10)
    """Widths of the hidden layers of the hypernetwork."""
    activation: ActivationName = "ReLU"
    """Activation of the hypernetwork."""
    chunk_size: int | None = None
    """Weights that are generated at a time, at most all. Default: all."""
    chunk_embedding_dim: int = 32
    """Size of a chunk's embedding."""
    task_specific_chunk_embeddings: bool = False
    """Give each task chunk embeddings of its own."""
    init: Literal["default", "hyperfan"] = "default"
    """Initialisation of the hypernetwork."""
    dropout: float = 0.0
    """Dropout probability in the hypernetwork."""
    spectral_norm: bool = False
    """Normalise the hypernetwork's hidden layers spectrally."""
    learning_rate: float | None = None
    """Of Adam for the hypernetwork. Default: that of the other methods."""
    prior_variance: float | None = None
    """Variance of a Gaussian prior over the generated weights. Default: no prior."""
    clip_grad_norm: float | None = None
    """Largest norm of the gradient."""
    train_from_scratch: bool = False
    """Start each experience from the initial weights; needs the regularizer none."""

    def __post_init__(self) -> None:
        """Refuse options that would not be used."""
        defaults = {f.name: f.default for f in fields(self)}
        changed = {n for n, default in defaults.items() if getattr(self, n) != default}
        unused = changed & (set().union(*OPTIONS.values()) - OPTIONS[self.regularizer])
        if unused:
            name = min(unused)
            raise ValueError(
                f"{name}={getattr(self, name)} does not go with regularizer={self.regularizer!r}, "
                f"which takes {', '.join(sorted(OPTIONS[self.regularizer])) or 'no such options'}"
            )
        if self.task_specific_chunk_embeddings and self.chunk_size is None:
            raise ValueError("task_specific_chunk_embeddings=True needs a chunk_size")

    def make_model(self, target: nn.Module, *, global_classes: bool = False) -> HyperModel:
        """The main network with its hypernetwork.

        With ``global_classes``, the labels of a task's classes need not count from zero.
        """
        options: dict[str, Any] = {
            "embedding_dim": self.embedding_dim,
            "hidden": self.hidden,
            "activation": getattr(nn, self.activation),
            "init": self.init,
            "dropout": self.dropout,
            "spectral_norm": self.spectral_norm,
        }
        if self.chunk_size is None:
            hypernetwork = HyperNetwork(target, **options)
        else:
            hypernetwork = ChunkedHyperNetwork(
                target,
                chunk_size=min(self.chunk_size, sum(p.numel() for p in target.parameters())),
                chunk_embedding_dim=self.chunk_embedding_dim,
                task_specific_chunk_embeddings=self.task_specific_chunk_embeddings,
                **options,
            )
        return HyperModel(
            target,
            hypernetwork,
            multi_head=self.multi_head or global_classes,
            reuse_units=global_classes and not self.multi_head,
        )

    def make_regularizer(self) -> Regularizer | None:
        """The regulariser, or None if there is to be none."""
        if self.regularizer == "none":
            return None
        if self.regularizer == "ewc":
            return EWC(self.beta, gamma=self.gamma, online=self.online, n_fisher=self.n_fisher)
        options: dict[str, Any] = {
            "lookahead": self.lookahead,
            "differentiable_lookahead": self.differentiable_lookahead,
            "mask_heads": self.mask_heads,
            "fisher_weights": self.fisher_weights,
            "n_fisher": self.n_fisher,
            "tasks_per_step": self.tasks_per_step,
        }
        if self.regularizer == "jacobian":
            return Jacobian(self.beta, **options)
        if self.regularizer == "value-preserving":
            return ValuePreserving(self.beta, **options)
        return FixedTarget(
            self.beta,
            train_previous_embeddings=self.train_previous_embeddings,
            targets=self.targets,
            **options,
        )

    def strategy_arguments(self) -> dict[str, Any]:
        """What :class:`HypernetTemplate` takes besides the arguments of every strategy."""
        return {
            "regularizer": self.make_regularizer(),
            "prior_variance": self.prior_variance,
            "clip_grad_norm": self.clip_grad_norm,
            "train_from_scratch": self.train_from_scratch,
        }
