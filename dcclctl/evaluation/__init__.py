"""Evaluation: which events are scored against which candidates, metrics per user, comparison, harm, and the gate."""
