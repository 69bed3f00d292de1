"""Hamming distances, search and the two decoders, on packed codes (uint8 [n, code_size], see llc.codes), CPU or CUDA.

Torch tensors in, torch tensors out, on the device they came from; numpy arrays in, numpy arrays out. Every result is exact and sorted
by (distance, index), so ties go to the lowest index: the same on every device and for any number of threads. The CPU uses as many
threads as torch (torch.get_num_threads(), which torchrun's OMP_NUM_THREADS sets). Work proceeds in tiles, so the [n, m] matrix is made
by `pairwise` alone. Codes may have up to 65,528 bits.
"""

from llc.hamming.decoders import Decoder, decode_ed, decode_mhd
from llc.hamming.neighbours import pairwise, range_search, search

__all__ = ["Decoder", "decode_ed", "decode_mhd", "pairwise", "range_search", "search"]
