"""Pure functions on tensors: denoise, select, vectors, compose. No files, nothing of
transformers."""
