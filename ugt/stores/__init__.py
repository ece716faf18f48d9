"""Records (SQL), online features (Redis) and vectors (Milvus): one real client each."""
