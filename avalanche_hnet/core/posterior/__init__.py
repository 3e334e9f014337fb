"""Gaussian posteriors over a network's weights, and predictions from them.

``protocol`` says what each offers. ``gaussian`` has the diagonal one and ``gaussian_checks`` what
it refuses; ``kronecker`` has the one with a Kronecker product for each layer, ``layer_products``
the sum over experiences of one layer, and ``nearest_product`` keeps that in constant memory.
``predictor`` predicts from a model and its posterior, at the mean that ``at_mean`` puts in place;
``predict`` is its public function. ``task_criteria`` tells how sure a prediction is.
"""
