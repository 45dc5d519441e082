"""Faster training of the adapter: attention, fused element-wise kernels, dropout, memory."""
