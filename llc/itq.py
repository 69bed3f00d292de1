"""A codebook made from a dense classifier: similar classes get similar codes, before any training.

The rows of the classifier's weight, one for each class, are reduced to num_bits dimensions (PCA), scaled to
length 1, and rotated so that they lie near the corners of a cube; their signs are the class codes. The
rotation is that of ITQ, iterative quantisation (Gong and Lazebnik, "Iterative Quantization: A Procrustean
Approach to Learning Binary Codes", CVPR 2011), which was made for the codes of images.
"""

import torch

from llc.codes import binarize

# For up to 64 bits, where they take a few seconds for 1,000 classes. Longer codes gain less from a good
# rotation, and each step costs the cube of their length.
_STARTS, _STEPS = 10, 100


def itq_codebook(weight: torch.Tensor, num_bits: int, seed: int) -> torch.Tensor:
    """A codebook of a classifier's weight, float [num_classes, features] -> float32 [num_classes, num_bits].

    Its values have the variance of a random codebook, 2 / num_bits. The best of several random starts is
    taken, drawn by the seed. If num_bits exceeds the rank of the weight, the rotation spreads what there is
    over all bits. Two classes may get the same code (llc.codebook.move_apart).
    """
    rows = weight.detach().cpu().double()
    rows = rows - rows.mean(0)
    left, sizes, _ = torch.linalg.svd(rows, full_matrices=False)
    points = torch.zeros(len(rows), num_bits, dtype=torch.double)
    kept = min(num_bits, len(sizes))
    points[:, :kept] = left[:, :kept] * sizes[:kept]
    points /= points.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.double).tiny)
    generator, effort = torch.Generator().manual_seed(seed), min(1.0, 64 / num_bits)
    best, best_error = points, torch.inf
    for _ in range(max(1, round(effort * _STARTS))):
        rotated = _rotated(points, max(1, round(effort * _STEPS)), generator)
        error = float((rotated - binarize(rotated)).square().sum())
        if error < best_error:
            best, best_error = rotated, error
    scale = (2 / num_bits) ** 0.5 / best.square().mean().sqrt().clamp_min(torch.finfo(torch.double).tiny)
    return (best * scale).float()


def projection_onto(codebook: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The projection whose class logits are nearest to a classifier's, up to a term that all classes share.

    codebook: real values [num_classes, num_bits]; weight: of the classifier, [num_classes, features].
    Returns float32 [num_bits, features], the least-squares solution P of sign(C) P = weight - its mean.
    """
    rows = weight.detach().cpu().double()
    signs = binarize(codebook.detach().cpu().double())
    return (torch.linalg.pinv(signs) @ (rows - rows.mean(0))).float()


def _rotated(points, steps, generator):
    """The points, [n, num_bits], after ITQ's alternation from a random rotation."""
    num_bits = points.shape[1]
    rotation = torch.linalg.qr(torch.randn(num_bits, num_bits, generator=generator, dtype=torch.double)).Q
    before = None
    for _ in range(steps):
        signs = binarize(points @ rotation)
        if before is not None and torch.equal(signs, before):
            break
        before = signs
        u, _, vh = torch.linalg.svd(points.T @ signs)  # the orthogonal Procrustes problem
        rotation = u @ vh
    return points @ rotation
