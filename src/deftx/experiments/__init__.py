"""Whole experiments: recipes, reports and the demo."""
