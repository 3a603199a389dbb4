"""`deftx demo`: artificial languages, a tiny base, and the whole method on them."""
