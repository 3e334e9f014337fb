"""Strategies for Avalanche."""
