"""Bases: loading them, their tokenizers and fingerprints; composing, extracting and switching
vectors on them."""
