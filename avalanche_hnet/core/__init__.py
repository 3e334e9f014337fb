"""The methods in plain PyTorch: nothing here knows of Avalanche."""
