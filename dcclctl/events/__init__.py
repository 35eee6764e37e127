"""All users' events as arrays, and random draws of negatives for them."""
