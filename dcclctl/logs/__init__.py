"""Reads outside logs into clean tables: formats, row rules, rejected records, splits, groups."""
