"""The Gaussian posterior over the weights, and predictions from it."""
