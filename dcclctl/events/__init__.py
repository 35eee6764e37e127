"""Everybody's events as tensors, and random draws of negatives from them."""
