"""User shards, and who works on them: this process, local processes, or a Ray cluster."""
