"""Room of the tokenizer, on the `tokenizers` library. It imports no other room; nothing is public here yet."""
