"""Parts of regression_uncertainty: functions on a line and how sure a network is of them."""
