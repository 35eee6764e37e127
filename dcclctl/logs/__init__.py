"""Outside logs to clean tables."""
