"""The report of a run: what its folder holds, as tables, figures and one page."""
