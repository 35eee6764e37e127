"""The audit: what each artifact may have seen, proven from the events of its lineage."""
