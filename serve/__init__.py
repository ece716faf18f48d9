"""Ray Serve: the serving graph."""
