"""Outside logs → clean tables: layouts, row rules, quarantine, splits, groups."""
