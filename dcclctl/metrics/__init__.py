"""Pure functions on arrays and tables: ranking, AUC, calibration, groups, significance, harm."""
