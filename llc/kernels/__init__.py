"""What the Triton kernels of this project share: launching them; and packing on CUDA."""
