"""The roof: composes the stages into commands, the main job, and jobs on a cluster."""
