"""Data: readers of the official formats, and the bundled Shapes data set.

`shapes` writes Shapes-VQA, `vqav2` reads it and the real VQAv2 alike, `vqa_accuracy` scores answers,
`transforms` turns pictures into model input. Import the modules: this package itself imports nothing.
"""
