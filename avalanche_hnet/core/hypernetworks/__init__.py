"""Networks that generate another network's weights."""
