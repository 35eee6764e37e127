"""Pure metrics: ranking, groups, significance."""
