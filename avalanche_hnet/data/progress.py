"""What is shown while data are read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from avalanche_hnet.core.common.processes import process_number


def with_bar(loader: Iterable[Any]) -> Iterable[Any]:
    """The batches of a loader, with a bar on a terminal if it takes long.

    Of several processes, only the main one shows it.
    """
    hidden = None if process_number() == 0 else True
    bar: Iterable[Any] = tqdm(loader, desc="Reading", delay=3, disable=hidden, leave=False)
    return bar
