"""Transfers and training over the kernel's own TCP: what the link model is compared with."""
