"""Text and labelled examples: reading them, and what is checked in them."""
