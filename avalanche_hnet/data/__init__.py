"""Data sets as tensors in memory, and what experiences say about their samples.

A :class:`~avalanche_hnet.data.store.TensorStore` reads each data set once and keeps it, after a
look at what it is made of (``structure``) and whether its samples stay the same (``randomness``).
Batches are cut out of the tensors as a loader would make them (``loader``), or in order
(``in_order``). ``experiences`` has the accessors of experiences: labels, classes.
"""
