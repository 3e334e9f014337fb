"""What a :class:`CheckpointPlugin` is made of.

``files`` writes and reads whole files; ``plain`` turns objects into plain values and back, of the
``kinds`` that are known, Avalanche's by ``avalanche_kinds``; ``strategy_state`` is all that a run
depends on, ``configuration`` what must be the same when it goes on, ``journal`` the finished calls,
``run`` skips and repeats, and ``within`` goes on in the middle of an experience.
"""
