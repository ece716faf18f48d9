"""The Unified Generative Transformer, in plain torch. Reading order: ugt.py, embeddings.py, encoder.py, decoder.py, heads.py, moe.py."""
