"""Conversations about generated scenes, which teach the suite's decoders and the real model to answer questions."""
