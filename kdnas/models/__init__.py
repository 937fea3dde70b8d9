"""Models: architectures, families, loading, the forward pass, checkpoints and exports."""
