"""Measures what a model makes."""
