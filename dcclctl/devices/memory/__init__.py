"""The device's memory: what it holds, the features it gives, and the patch that is conditioned on them."""
