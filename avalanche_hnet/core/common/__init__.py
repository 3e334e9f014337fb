"""What all methods share.

``arguments`` has the checks of arguments, ``likelihoods`` what a criterion stands for,
``quadratic`` the weighted sum of squares of the penalties, ``task_statistics`` a set of running
statistics for each task, ``evaluation`` evaluation mode without a trace, ``masking`` the value of
masked outputs.
"""
