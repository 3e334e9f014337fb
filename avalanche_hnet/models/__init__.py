"""Models for Avalanche: main networks with generated weights, heads, and task inference.

- ``hyper_model``: a main network whose weights a hypernetwork generates, made of

  - ``multi_task_model`` and ``task_registry``: which tasks there are, and which were trained;
  - ``generated_weights``: the hypernetwork's, kept in evaluation;
  - ``network_runner`` and ``main_network``: a network without weights of its own, and how it runs
    with given ones, for one task or many at once;
  - ``weights_per_sample``: the same with weights generated for each sample, for the Fisher of the
    hypernetwork;
  - ``output_heads`` and ``columns``: which outputs are a task's.

- ``block_heads``: the heads of all tasks in one wide layer.
- ``active``: which elements of a model's parameters an experience's loss depends on.
- ``task_inference``: a model that finds out by itself which task a sample belongs to.
"""
