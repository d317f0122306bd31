"""Images of environments, plots and reports."""
