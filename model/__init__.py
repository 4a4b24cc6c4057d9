"""Room of the encoder: configuration, embeddings, layers, checkpoints. It may import `kernels`; nothing is public here yet."""
