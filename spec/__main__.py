"""python -m spec writes vectors/numerics/*.json, all but shards.json (python -m spec.shards) and
the folders `elementary` and `random`."""

from spec.cases import write_vectors
from spec.vector_files import FOLDER

write_vectors(FOLDER)
