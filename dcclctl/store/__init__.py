"""Stores artifacts on disk: commits them whole, checks them when they are read, finds them by reference."""
