"""Vectors on disk: the coding of indices, the vector folder, fingerprints of bases, and the hub."""
