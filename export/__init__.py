"""From a Hugging Face model and a LoRA adapter to a 4-bit GGUF that is proven to be the same model."""
