"""A run's model, taken out of its transcript."""
