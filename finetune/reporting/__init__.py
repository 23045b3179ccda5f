"""Plots and TensorBoard logs of a training."""
