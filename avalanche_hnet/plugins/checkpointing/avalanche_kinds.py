"""Avalanche's own plugins and metrics: those whose state is their attributes, and those refused."""

from __future__ import annotations

from types import ModuleType

from avalanche.evaluation import metrics
from avalanche.evaluation.metric_results import AlternativeValues, TensorImage
from avalanche.training.plugins import (
    AGEMPlugin,
    BiCPlugin,
    CoPEPlugin,
    CWRStarPlugin,
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    FromScratchTrainingPlugin,
    GDumbPlugin,
    GEMPlugin,
    GenerativeReplayPlugin,
    GSS_greedyPlugin,
    LFLPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    MASPlugin,
    ReplayPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
    TrainGeneratorAfterExpPlugin,
)
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates.base_sgd import PeriodicEval
from avalanche.training.utils import ParamData

from avalanche_hnet.plugins.checkpointing.kinds import (
    refuse_checkpoint_state,
    register_checkpoint_state,
)

# Of threads, handles and clocks of this process.
_OF_THIS_PROCESS = {
    "_init_time",
    "_prev_time",
    "_process_handle",
    "_first_update",
    "thread",
    "stop_f",
    "hooks",
}
_METRICS = (
    metrics.acc_matrix,
    metrics.accuracy,
    metrics.amca,
    metrics.checkpoint,
    metrics.class_accuracy,
    metrics.cpu_usage,
    metrics.cumulative_accuracies,
    metrics.disk_usage,
    metrics.forgetting_bwt,
    metrics.forward_transfer,
    metrics.gpu_usage,
    metrics.loss,
    metrics.mac,
    metrics.mean,
    metrics.ram_usage,
    metrics.timing,
    metrics.topk_acc,
)


def _register_metrics(module: ModuleType) -> None:
    for kind in vars(module).values():
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            register_checkpoint_state(kind, skip=_OF_THIS_PROCESS)


for _module in _METRICS:
    _register_metrics(_module)
for _kind in (
    AlternativeValues,
    Clock,
    EarlyStoppingPlugin,
    EWCPlugin,
    FromScratchTrainingPlugin,
    GEMPlugin,
    LRSchedulerPlugin,
    MASPlugin,
    ParamData,
    PeriodicEval,
    RWalkPlugin,
    SynapticIntelligencePlugin,
    TensorImage,
):
    register_checkpoint_state(_kind)
# Metrics that wait for the loggers are on their way in the middle of a call only.
register_checkpoint_state(EvaluationPlugin, skip={"loggers", "_metric_values"})

for _kind in (GDumbPlugin, GSS_greedyPlugin, CoPEPlugin, AGEMPlugin, ReplayPlugin, BiCPlugin):
    refuse_checkpoint_state(_kind, "which keeps samples of earlier experiences, cannot be saved")
for _kind in (LFLPlugin, LwFPlugin, CWRStarPlugin, GenerativeReplayPlugin):
    refuse_checkpoint_state(_kind, "which keeps copies of models, cannot be saved")
refuse_checkpoint_state(
    TrainGeneratorAfterExpPlugin, "which trains a second model, cannot be saved"
)
