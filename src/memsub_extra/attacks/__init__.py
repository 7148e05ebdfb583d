"""Attacks: can training images still be extracted from the model?

sample_to_folder(pipe, captions, folder, images=30)             # many images a caption, streamed to disk
claims = extract(folder)                                        # cliques of near-duplicates (Carlini et al. 2023)
checked = check_extraction(claims, folder, metrics.copy, corpus)
attacked = embedding_attack(pipe, images, start)                # Finding Dori (Kowalczuk et al. 2025)

Detection of memorized captions is in `memsub_extra.mitigations.detection`.
"""

from .embedding import EmbeddingAttack, embedding_attack
from .extraction import (
    check_extraction,
    extract,
    image_path,
    largest_clique,
    sample_to_folder,
    tiled_distance,
)

__all__ = [
    "EmbeddingAttack",
    "check_extraction",
    "embedding_attack",
    "extract",
    "image_path",
    "largest_clique",
    "sample_to_folder",
    "tiled_distance",
]
