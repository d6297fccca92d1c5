"""Geometric limits of knowledge distillation, measured."""
