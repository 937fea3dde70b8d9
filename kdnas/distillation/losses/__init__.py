"""Distillation losses: pure functions of tensors."""
