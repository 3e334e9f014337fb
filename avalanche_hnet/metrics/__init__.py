"""What the plugins publish to Avalanche's loggers."""
