"""Heads, and what they say about the elements that take part in an experience."""
