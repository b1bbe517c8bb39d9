"""The published systems, one room for each."""
