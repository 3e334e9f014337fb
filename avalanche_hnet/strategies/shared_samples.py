"""What strategies of hypernetworks do where several processes train them together."""

from __future__ import annotations

from typing import Any

from avalanche_hnet.data.processes import evaluate_all, shuffle_anew


class SharedSamples:
    """A base of strategies, in front of Avalanche's, whose processes share samples."""

    dataloader: Any
    clock: Any

    def _before_training_epoch(self, **kwargs: Any) -> None:
        super()._before_training_epoch(**kwargs)  # type: ignore[misc]
        shuffle_anew(self.dataloader, self.clock.train_exp_epochs)

    def _before_eval_exp(self, **kwargs: Any) -> None:
        super()._before_eval_exp(**kwargs)  # type: ignore[misc]
        evaluate_all(self.dataloader)
