"""Training for both phases: sparse tuning of a selection, and one loop on the transformers
Trainer."""
