"""Comparisons of methods on a stream of experiences, with accuracies as their result."""
