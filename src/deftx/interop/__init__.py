"""Vectors in the formats of other tools: LT-SFT, PEFT's SHiRA, mergekit."""
