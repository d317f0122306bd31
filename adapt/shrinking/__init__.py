"""From a folder of weights to a smaller folder: layers deleted, what is left trained again, saved, and checked."""
