"""Change several attributes of an object at once, so that no interrupt leaves half a change."""

from __future__ import annotations

from typing import Any


def exchange(owner: object, **attributes: Any) -> None:
    """Set these attributes in one call of C code, which Ctrl-C cannot come in the middle of."""
    vars(owner).update(attributes)


class LatestUpdate:
    """What objects were before an experience was taken in, until its training has ended.

    Where a training is broken off after that, in another plugin or in an evaluation, the same
    experience may be trained again. Then it must not count twice.
    """

    def __init__(self) -> None:
        self._experience: Any = None
        self._before: list[tuple[object, dict[str, Any]]] = []
        self._is_broken_off = False

    def remember(self, experience: Any, *owners: object) -> None:
        """Keep the attributes that these objects have, before they take in an experience.

        Args:
            experience: what it is told from others by.
            owners: objects whose attributes are exchanged, never changed in place.
        """
        before = [(owner, dict(vars(owner))) for owner in owners]
        exchange(self, _experience=experience, _before=before)

    def begin(self) -> None:
        """A training begins; what is still kept is of one that was broken off."""
        self._is_broken_off = bool(self._before)

    def undo(self, experience: Any) -> None:
        """Take back what a broken training of this experience, trained now, has left."""
        if self._is_broken_off and experience == self._experience:
            for owner, attributes in self._before:
                exchange(owner, **attributes)
        self.forget()

    def forget(self) -> None:
        """What was taken in stays."""
        exchange(self, _experience=None, _before=[], _is_broken_off=False)
