"""Room of the task heads and pipelines. It may import `model`, `kernels` and `tokenization`; nothing is public here yet."""
