"""The whole front: for every budget the best mask, from one search."""
