"""Pictures and pages of architectures under a mask: what environments render, and what reports and the explorer show."""
