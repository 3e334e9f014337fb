"""Regression for models that ask for the classes of an experience."""

from __future__ import annotations

from copy import copy

import torch
from avalanche.benchmarks import CLExperience, CLScenario, EagerCLStream


def with_target_components(benchmark: CLScenario) -> CLScenario:
    """Let a regression benchmark state the components of its targets where models ask for classes.

    ``classes_in_this_experience`` of every experience becomes [0, …, D − 1] for targets of D
    components in all, whatever their shape. Avalanche's ``MultiHeadClassifier``,
    ``as_multitask`` and every ``MultiTaskModule`` that keeps Avalanche's ``adaptation`` need
    that; a head then has an output unit for each component, (B, D), for targets of shape (D,).

    Set the head's size, ``MultiHeadClassifier(in_features, initial_out_features=D)``: its default
    is 2, and for D = 1 the second unit would be masked with −1000, so that the outputs do not
    have the targets' shape (B, 1). (``as_multitask`` takes the size from the layer that it
    replaces.) A head whose task has never been trained is masked as a whole; pass
    ``masking=False`` to evaluate such tasks.

    Args:
        benchmark: with real targets; all targets of an experience have the shape of the first.

    Returns:
        A benchmark of the same streams with copies of the experiences. The data are not copied.

    Raises:
        ValueError: if targets are integers or there are none.
    """
    streams = [
        EagerCLStream(
            name, [_with_components(name, number, exp) for number, exp in enumerate(stream)]
        )
        for name, stream in benchmark.streams.items()
    ]
    return CLScenario(streams)


def _with_components(stream: str, number: int, experience: CLExperience) -> CLExperience:
    where = f"experience {number} of the {stream} stream"
    if len(experience.dataset) == 0:
        raise ValueError(f"{where} must have at least one sample to tell its targets, got none")
    target = torch.as_tensor(experience.dataset[0][1])
    if not target.is_floating_point() or target.numel() == 0:
        raise ValueError(
            f"targets must be floating-point numbers, at least one per sample, got {target.dtype} "
            f"of shape {tuple(target.shape)} in {where}; for class labels take Avalanche's "
            "with_classes_timeline, for other integers convert the dataset's"
        )
    experience = copy(experience)
    experience.classes_in_this_experience = list(range(target.numel()))
    return experience
