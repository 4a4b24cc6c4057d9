"""The Triton backend: kernels, their launch configurations, and the host side that launches them."""
