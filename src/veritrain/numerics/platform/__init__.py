"""What the numerics ask of PyTorch and the machine: places of tensors, threads, oneDNN's switch,
and modes that see operators. It knows nothing of what is computed."""
