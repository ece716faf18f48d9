"""Ray Train: autoencoder, Word2Vec, semantic IDs, UGT, evaluation, export."""
