"""Sharing vectors on the hub: what is pushed, its model card, and what must not leave this
machine."""
