"""The Gaussian posterior over a network's weights, and predictions from it.

``gaussian`` has the posterior and ``gaussian_checks`` what it refuses. ``predictor`` predicts from
a model and its posterior, at the mean that ``at_mean`` puts in place; ``predict`` is its public
function. ``task_criteria`` tells how sure a prediction is.
"""
