"""Generated data sets of coloured shapes in the official formats."""
