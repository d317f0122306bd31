"""What readers of data share: images, arrow tables, checks, caches, splits."""
