"""The generated world: scenes of coloured shapes, what is said of them, and data sets of them in the official formats."""
