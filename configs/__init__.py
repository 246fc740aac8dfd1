"""Recipes: one file each, `get_config(arg)` returns a locked `ConfigDict`."""
