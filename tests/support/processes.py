"""Runs functions in two processes of a group, over gloo."""

import time
import traceback
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from avalanche_hnet import ClipGradientPlugin

N = 2


class EvaluateAll(ClipGradientPlugin, supports_distributed=True):
    """Evaluates after each epoch, which adds heads and embeddings of tasks to come."""

    def __init__(self, stream):
        super().__init__(1.0)
        self.stream = stream

    def after_training_epoch(self, strategy, **kwargs):
        strategy.eval(self.stream)


def in_two_processes(folder, *jobs):
    """What each job returns in each of two processes, by its name.

    The jobs are called with the rank, one after the other and in float64, each with a seed of its
    process's own. A job that raises in both processes returns the error's text.

    Args:
        folder: an empty one.
        jobs: functions.
    """
    # Forked, since the imports of new interpreters take longer than all the jobs.
    context = mp.start_processes(
        _work, (str(folder), jobs), nprocs=N, join=False, start_method="fork"
    )
    deadline = time.monotonic() + 150
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise TimeoutError("the processes wait for each other")
    results = [torch.load(folder / str(rank), weights_only=False) for rank in range(N)]
    return {job.__name__: [result[job.__name__] for result in results] for job in jobs}


def _work(rank, folder, jobs):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=N,
        timeout=timedelta(seconds=60),
    )
    torch.set_default_dtype(torch.float64)
    results = {}
    for job in jobs:
        torch.manual_seed(rank)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                results[job.__name__] = job(rank)
            except (TypeError, ValueError) as error:
                traceback.print_exc()
                results[job.__name__] = f"{type(error).__name__}: {error}"
        unwanted = [str(w.message) for w in caught if "not compatible" in str(w.message)]
        assert not unwanted, unwanted
        dist.barrier()
    torch.save(results, f"{folder}/{rank}")
    dist.destroy_process_group()


def same(first, second):
    """Whether two results, tensors in lists and dictionaries, are equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def assert_close(first, second, tolerance):
    """The same for results that may differ by so much."""
    if isinstance(first, torch.Tensor):
        if first.is_floating_point():
            torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_close(first[key], second[key], tolerance)
    elif isinstance(first, (list, tuple)):
        for one, other in zip(first, second, strict=True):
            assert_close(one, other, tolerance)
    else:
        assert first == second
