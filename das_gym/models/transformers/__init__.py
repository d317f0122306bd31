"""Any vision-language model of transformers."""
