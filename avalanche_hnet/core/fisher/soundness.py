"""For which parameters the rules of layers hold in a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable

from torch import Tensor

from avalanche_hnet.core.fisher.alignment import misaligned
from avalanche_hnet.core.fisher.graph import Graph, graph_of
from avalanche_hnet.core.fisher.one_task import OneTask
from avalanche_hnet.core.fisher.precision import coarsest
from avalanche_hnet.core.fisher.recording import Call, Recording


def unsound(
    task: OneTask,
    outputs: Tensor,
    recording: Recording,
    names: Collection[str],
    aligned: set[Hashable],
    *,
    is_tried: bool = False,
) -> set[str]:
    """Those of ``names`` that the rules of their layers would not get right in this batch.

    A rule holds where the parameter is used in one place, in the one call of its layer that the
    outputs depend on, and where the samples are in dimension 0 of that call.

    Args:
        task: the model.
        outputs: for the batch (B, …).
        recording: the calls of layers with rules behind them.
        names: of the parameters by rule.
        aligned: signatures of graphs whose way is fixed and in which samples are in dimension 0;
            this one is added.
        is_tried: whether the rules are tried on this very batch, so that rows that mix samples
            would show. It is not enough where other samples can take another way.
    """
    ends = {call.output.node for call in recording.calls}
    names = set(names)
    graph = graph_of(outputs, {n: task.parameters[n] for n in names}, ends)
    if graph.is_opaque:
        return names
    calls = [c for c in recording.calls if c.output.node in graph.nodes]
    wrong = set(graph.several)
    called = Counter(call.prefix for call in calls)
    used_by_call: set[str] = set()
    prefixes: set[str] = set()
    for call in calls:
        own_names = names.intersection(call.names.values())
        used_by_call |= own_names
        if called[call.prefix] > 1 or not _has_samples(call, len(outputs)):
            wrong |= own_names
        elif not own_names <= wrong:
            prefixes.add(call.prefix)
    wrong |= graph.once - used_by_call
    for prefix in _misaligned(graph, outputs, recording, prefixes, aligned, is_tried):
        wrong |= names.intersection(task.names[prefix].values())
    return wrong


def _has_samples(call: Call, n_samples: int) -> bool:
    return call.inputs.shape[:1] == call.shape[:1] == (n_samples,)


def _misaligned(
    graph: Graph,
    outputs: Tensor,
    recording: Recording,
    prefixes: set[str],
    aligned: set[Hashable],
    is_tried: bool,
) -> set[str]:
    if len(outputs) == 1 or not prefixes:  # every row is of the one sample
        return set()
    shapes = tuple((c.prefix, c.inputs.dim(), c.shape[1:]) for c in recording.calls)
    signature = (graph.signature, shapes)
    if graph.is_fixed and is_tried:
        aligned.add(signature)
    if graph.is_fixed and signature in aligned:
        return set()
    dtype = coarsest({outputs.dtype, *recording.dtypes()})
    wrong = misaligned(recording, outputs, dtype, prefixes)
    if graph.is_fixed and not wrong:
        aligned.add(signature)
    return wrong
