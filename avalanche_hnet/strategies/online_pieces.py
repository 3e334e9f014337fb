"""Where an experience ends in a stream of small pieces."""

from __future__ import annotations

from avalanche.benchmarks import CLExperience, OnlineCLExperience


class PieceCounter:
    """Counts the pieces of an experience that a strategy has trained on.

    Online streams that tell task boundaries have many pieces with one boundary.
    """

    def __init__(self) -> None:
        self._n_pieces = 0

    def is_over_after(self, experience: CLExperience) -> bool:
        """Count one more, and say whether the whole experience is over."""
        if not (isinstance(experience, OnlineCLExperience) and experience.access_task_boundaries):
            return True
        if experience.is_first_subexp:
            self._n_pieces = 0
        self._n_pieces += 1
        return bool(self._n_pieces == experience.sub_stream_length)
