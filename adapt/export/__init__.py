"""Fine-tuned subnets for other programs: folders in transformers' conventions, and ONNX."""
