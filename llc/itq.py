"""A codebook made from a dense classifier: similar classes get similar codes, before any training.

The rows of the classifier's weight, one for each class, are reduced to num_bits dimensions (PCA), scaled to
length 1, and rotated so that they lie near the corners of a cube; their signs are the class codes. The
rotation is that of ITQ, iterative quantisation (Gong and Lazebnik, "Iterative Quantization: A Procrustean
Approach to Learning Binary Codes", CVPR 2011), which was made for the codes of images.
"""

import torch
import torch.nn.functional as F

from llc.codes import binarize

# For up to 64 bits, where they take a few seconds for 1,000 classes. Longer codes gain less from a good
# rotation, and each step costs the cube of their length.
_STARTS, _STEPS = 10, 100


def itq_codebook(
    weight: torch.Tensor, num_bits: int, seed: int, prefixes: tuple[int, ...] = ()
) -> torch.Tensor:
    """A codebook of a classifier's weight, float [num_classes, features] -> float32 [num_classes, num_bits].

    Its values have the variance of a random codebook, 2 / num_bits. The best of several random starts is
    taken, drawn by the seed. If num_bits exceeds the rank of the weight, the rotation spreads what there is
    over all bits. Two classes may get the same code (llc.codebook.move_apart).

    prefixes: rising to num_bits; the first so many bits hold as many first principal components, so that they
    are the codes that a codebook of this length would have. Bits beyond the rank begin again with the first
    component.
    """
    rows = weight.detach().cpu().double()
    rows = rows - rows.mean(0)
    left, sizes, _ = torch.linalg.svd(rows, full_matrices=False)
    components, generator = left * sizes, torch.Generator().manual_seed(seed)
    if prefixes:
        rank = max(1, int((sizes > 1e-9 * sizes[:1]).sum()))
        blocks = [
            components[:, torch.arange(start, end) % rank] for start, end in zip((0, *prefixes), prefixes)
        ]
    else:
        blocks = [F.pad(components[:, :num_bits], (0, max(0, num_bits - len(sizes))))]
    rotated = torch.cat([_best_rotation(block, generator) for block in blocks], 1)
    return ((2 / num_bits) ** 0.5 * rotated).float()


def projection_onto(codebook: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The projection whose class logits are nearest to a classifier's, up to a term that all classes share.

    codebook: real values [num_classes, num_bits]; weight: of the classifier, [num_classes, features].
    Returns float32 [num_bits, features], the least-squares solution P of sign(C) P = weight - its mean.
    """
    rows = weight.detach().cpu().double()
    signs = binarize(codebook.detach().cpu().double())
    return (torch.linalg.pinv(signs) @ (rows - rows.mean(0))).float()


def _best_rotation(points, generator):
    """Points [n, bits], scaled to length 1 and rotated to lie near the corners of a cube; mean square 1."""
    tiny = torch.finfo(torch.double).tiny
    points = points / points.norm(dim=1, keepdim=True).clamp_min(tiny)
    best, best_error, effort = points, torch.inf, min(1.0, 64 / points.shape[1])
    for _ in range(max(1, round(effort * _STARTS))):
        rotated = _rotated(points, max(1, round(effort * _STEPS)), generator)
        error = float((rotated - binarize(rotated)).square().sum())
        if error < best_error:
            best, best_error = rotated, error
    return best / best.square().mean().sqrt().clamp_min(tiny)


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
