"""Hamming distances, search and decoding of packed codes, on the CPU or on CUDA.

Packed codes are uint8 [n, code_size], see llc.codes; they may have up to 65,528 bits. For torch tensors the
results are torch tensors on the same device; for numpy arrays they are numpy arrays.

Every result is exact. Results are sorted by distance, then by index, so a tie goes to the lowest index; they
are the same on every device and for any number of threads. The CPU uses torch.get_num_threads() threads,
which OMP_NUM_THREADS sets unless a program, such as the trainer under torchrun, sets another number. Only
`pairwise` allocates the whole [n, m] matrix of distances, because the other functions work tile by tile.
"""

from llc.hamming.decoders import Decoder, decode_ed, decode_mhd
from llc.hamming.neighbours import pairwise, range_search, search
from llc.hamming.posterior import PosteriorDecoder

__all__ = ["Decoder", "PosteriorDecoder", "decode_ed", "decode_mhd", "pairwise", "range_search", "search"]
