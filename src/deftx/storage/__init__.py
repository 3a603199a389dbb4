"""Vectors on disk: the coding of indices, the vector folder, and fingerprints of bases."""
