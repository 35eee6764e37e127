"""The device's memory of its user's events, features of candidates computed from it, and the patch that uses them."""
