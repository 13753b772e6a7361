"""evokd evolves distillation losses and student architectures for any teacher–student pair."""
