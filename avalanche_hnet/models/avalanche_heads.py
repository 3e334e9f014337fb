"""Which elements of Avalanche's own modules an experience's loss depends on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

import torch
from avalanche.benchmarks import CLExperience
from avalanche.models import IncrementalClassifier, MultiHeadClassifier
from avalanche.models.pnn import PNNLayer
from avalanche.models.utils import FeatureExtractorBackbone
from torch import Tensor, nn

from avalanche_hnet.data.experiences import labels_of


@singledispatch
def masks_of(module: nn.Module, experience: CLExperience) -> Mapping[str, Tensor]:
    """Boolean masks by parameter name, which broadcast to it; what is missing is active.

    Args:
        module: of any class; those that are not Avalanche's are active as a whole.
        experience: the one to be trained on.
    """
    return {}


@masks_of.register
def _(module: IncrementalClassifier, experience: CLExperience) -> Mapping[str, Tensor]:
    return _rows(module.active_units.bool(), "classifier") if module.masking else {}


@masks_of.register
def _(module: MultiHeadClassifier, experience: CLExperience) -> Mapping[str, Tensor]:
    masks: dict[str, Tensor] = {}
    tasks = set(labels_of(experience))
    nothing = torch.zeros(1, dtype=torch.bool)
    for label, head in module.classifiers.items():
        units = nothing
        if int(label) in tasks:
            bias = head.classifier.bias
            units = torch.full_like(bias, not module.masking, dtype=torch.bool)
            if module.masking:
                seen = module.get_buffer(f"active_units_T{label}")
                units[: len(seen)] = seen.bool()
        masks |= _rows(units, f"classifiers.{label}.classifier")
    return masks


@masks_of.register
def _(module: PNNLayer, experience: CLExperience) -> Mapping[str, Tensor]:
    """A task's output comes from its own column and those before it."""
    columns = module.task_to_module_idx
    last = max((columns[t] for t in labels_of(experience) if t in columns), default=-1)
    return {
        f"columns.{name}": torch.tensor(int(name.split(".")[0]) <= last)
        for name, _ in module.columns.named_parameters()
    }


@masks_of.register
def _(module: FeatureExtractorBackbone, experience: CLExperience) -> Mapping[str, Tensor]:
    """It detaches its output, so its weights are never trained."""
    return {name: torch.tensor(False) for name, _ in module.named_parameters()}


def _rows(units: Tensor, layer: str) -> dict[str, Tensor]:
    return {f"{layer}.weight": units[:, None], f"{layer}.bias": units}
