"""Parameters that have no Fisher information of their own."""

from __future__ import annotations

from torch import nn


def refuse_complex_parameters(model: nn.Module) -> None:
    """Check that what is differentiated is real: a Fisher is one number for each real element.

    Raises:
        ValueError: naming the parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.is_complex():
            raise ValueError(
                f"parameter {name!r} is complex ({parameter.dtype}), but a Fisher and a posterior "
                "are of real numbers; hold its real and imaginary parts as a real parameter of "
                "shape (…, 2) and use torch.view_as_complex in forward, or freeze it"
            )
