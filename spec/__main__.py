"""python -m spec writes vectors/numerics/*.json. The folders beside these files have programs of
their own: python -m spec.shards, for example."""

from spec.cases import write_vectors
from spec.vector_files import FOLDER

write_vectors(FOLDER)
