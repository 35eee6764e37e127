"""Methods that learn patches of the cloud model for each user's device, and how patches serve users."""
