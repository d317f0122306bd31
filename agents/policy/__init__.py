"""A policy that reads layer statistics: learned on a suite of problems, used on others."""
