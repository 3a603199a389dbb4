"""Others' file formats for differences of weights, one module each; `deftx.conversion` has the table of them."""
