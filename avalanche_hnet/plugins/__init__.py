"""Plugins for Avalanche's strategies.

``prior_ewc`` is online EWC with an explicit prior; ``experience_penalty`` has its penalties while
an experience is trained, and ``prior_ewc_log`` what it publishes. ``in_memory`` serves data from
memory, ``task_inference`` evaluates without task labels, ``task_statistics`` keeps running
statistics for each task, ``isolated_evaluation`` takes back what an evaluation changes.
``publish`` and ``finite_loss`` are shared with the strategies.
"""
