"""Others' file formats for differences of weights, one module each; `deftx.convert` has the table of them."""
