"""The refusal of batches that Avalanche's loader cannot make."""

from __future__ import annotations

from avalanche.training.templates import SupervisedTemplate

from avalanche_hnet.data.experiences import labels_or_none


def refuse_small_batches(strategy: SupervisedTemplate) -> None:
    """Refuse an experience of more tasks than a batch has samples.

    Avalanche's loader takes as many samples of each task into each batch.

    Raises:
        ValueError: naming the least size.
    """
    labels = labels_or_none(strategy.experience) or []
    if len(labels) > strategy.train_mb_size:
        raise ValueError(
            f"train_mb_size={strategy.train_mb_size} is too small for experience "
            f"{strategy.experience.current_experience} with the tasks {labels}, of each of which "
            f"Avalanche puts samples into each batch; it must be at least {len(labels)}"
        )
