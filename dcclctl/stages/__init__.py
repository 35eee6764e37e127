"""Load artifacts, compute, commit one artifact."""
