"""Recompute and compare."""
