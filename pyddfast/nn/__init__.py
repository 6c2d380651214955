"""Modules over the fused operators."""
