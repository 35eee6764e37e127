"""Distillation: patched device models teach the cloud model ("model over models")."""
