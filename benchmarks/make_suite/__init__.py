"""How the problems of `DAS-Suite-v0` are made: many small models, each trained for a few minutes."""
