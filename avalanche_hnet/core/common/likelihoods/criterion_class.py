"""Criteria that are functions, as the classes that compute the same."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import nn

_CLASSES = (
    (F.cross_entropy, nn.CrossEntropyLoss),
    (F.nll_loss, nn.NLLLoss),
    (F.mse_loss, nn.MSELoss),
    (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss),
)


def as_module(criterion: object) -> object:
    """The module that computes what a function of ``torch.nn.functional`` does.

    Keywords that a :func:`functools.partial` fixes are kept. Anything else is returned as it is.
    """
    options = {}
    function = criterion
    if isinstance(criterion, partial) and not criterion.args:
        function, options = criterion.func, criterion.keywords
    for known, module in _CLASSES:
        if function is known:
            return module(**options)
    return criterion
