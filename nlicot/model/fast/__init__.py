"""Faster layers for training on a CPU: attention, element-wise kernels, dropout, memory."""
