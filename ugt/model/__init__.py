"""The Unified Generative Transformer, in plain torch."""
