"""Parts of the PyTorch backend; `kernels/blockwise.py` is its entry."""
