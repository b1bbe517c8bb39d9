"""The keys of random numbers: which stream or generator an operator that draws takes them from."""
