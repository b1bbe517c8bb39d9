"""Training by several processes that trust each other, as `torchrun` starts them.

Each process is a *rank*. A rank computes some shards of every step, and all ranks add them by the
tree of `veritrain.job.shards`; so the run is the one that a single process would have made, bit for
bit. Rank 0 writes it. No object crosses between ranks, and nothing is unpickled: bytes of known
sizes alone.
"""
