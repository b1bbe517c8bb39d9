"""The kernels of `exact` numerics on tensors in the CPU's memory: exact sums and products,
correctly rounded functions, counter-based random numbers. They know tensors and numbers, no
operators: `rules` calls them."""
