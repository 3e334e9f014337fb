"""Plugins for Avalanche's strategies."""
