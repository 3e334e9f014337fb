"""What an experience says of its tasks and classes."""

from __future__ import annotations

import torch
from avalanche.benchmarks import CLExperience


def labels_of(experience: CLExperience) -> list[int]:
    """The task labels of an experience.

    Raises:
        ValueError: if it has none.
    """
    if not hasattr(experience, "task_labels"):
        raise ValueError(
            "the experience has no task_labels, which a HyperModel needs; make the benchmark with "
            "task labels, for example by avalanche.benchmarks.with_task_labels"
        )
    return [int(label) for label in experience.task_labels]


def whole(experience: CLExperience) -> CLExperience:
    """Of a piece of an experience in an online stream, the experience."""
    return getattr(experience, "origin_experience", experience)


def tasks_and_classes(experience: CLExperience) -> set[tuple[int, int]]:
    """The pairs of task label and class label that the experience has samples of.

    In regression, where there are no classes, the number of a target's component takes the
    place of the class label.
    """
    labels = experience.task_labels
    dataset = experience.dataset
    target = torch.as_tensor(dataset[0][1])
    if target.is_floating_point():
        return {(int(t), d) for t in labels for d in range(target.numel())}
    if len(labels) == 1:
        classes = getattr(experience, "classes_in_this_experience", dataset.targets)
        return {(int(labels[0]), int(c)) for c in classes}
    return {
        (int(t), int(c)) for t, c in zip(dataset.targets_task_labels, dataset.targets, strict=True)
    }
