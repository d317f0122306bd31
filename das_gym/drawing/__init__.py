"""Images of environments, plots, reports and the explorer."""
