"""Ray Data: sources to canonical tables, features, text vectors, histories."""
