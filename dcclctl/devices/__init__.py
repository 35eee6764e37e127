"""What a user's device does with the cloud model: methods that learn patches, and how patches serve users."""
