"""What an experience says about its tasks and classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.benchmarks import CLExperience


def labels_of(experience: CLExperience) -> list[int]:
    """The task labels of an experience.

    Raises:
        ValueError: if it has none.
    """
    labels = labels_or_none(experience)
    if labels is None:
        raise ValueError(
            "the experience has no task_labels, which a HyperModel or a model with several heads "
            "needs; make the benchmark with task labels, for example by "
            "avalanche.benchmarks.with_task_labels"
        )
    return labels


def labels_or_none(experience: CLExperience) -> list[int] | None:
    """The task labels of an experience; None if it has none."""
    if not hasattr(experience, "task_labels"):
        return None
    return [int(label) for label in experience.task_labels]


def whole(experience: CLExperience) -> CLExperience:
    """The experience that a piece of an online stream was cut from; any other as it is."""
    return getattr(experience, "origin_experience", experience)


def identity_of(experience: CLExperience) -> tuple[Any, ...]:
    """What an experience is told from others by, even where a stream makes it anew."""
    stream = getattr(getattr(experience, "origin_stream", None), "name", None)
    return stream, getattr(experience, "current_experience", None), len(experience.dataset)


def stated_classes(experience: CLExperience) -> list[int] | None:
    """The class labels that an experience says it has; None if it says nothing."""
    stated = getattr(experience, "classes_in_this_experience", None)
    return None if stated is None else [int(c) for c in stated]


def classes_of(experience: CLExperience) -> list[int]:
    """The class labels that an experience states, or else those of its samples.

    In regression, where there may be no classes, the numbers of a target's components.
    """
    stated = stated_classes(experience)
    return [c for _, c in tasks_and_classes(experience)] if stated is None else stated


def tasks_and_classes(experience: CLExperience) -> set[tuple[int, int]]:
    """The pairs of task label and class label that the experience has samples of.

    In regression, where there are no classes, the number of a target's component takes the
    place of the class label.
    """
    labels = labels_of(experience)
    dataset = experience.dataset
    target = torch.as_tensor(_first_target(dataset))
    if target.is_floating_point():
        return {(t, d) for t in labels for d in range(target.numel())}
    if len(labels) == 1:
        stated = stated_classes(experience)
        return {(labels[0], int(c)) for c in (dataset.targets if stated is None else stated)}
    return {
        (int(t), int(c)) for t, c in zip(dataset.targets_task_labels, dataset.targets, strict=True)
    }


def _first_target(dataset: Any) -> Any:
    sample = dataset[0]
    if not isinstance(sample, Mapping):
        return sample[1]
    if not hasattr(dataset, "targets"):
        raise ValueError(
            f"samples are dictionaries with the keys {[*sample]}, which do not say what the "
            "targets are; give the AvalancheDataset a DataAttribute of the name 'targets'"
        )
    return dataset.targets[0]
