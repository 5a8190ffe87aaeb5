"""Outlets: other programs that show a run. They read its files, as the live page does.

A coordinator starts a process for each outlet that is configured (`python -m hypergpu.outlets`). `hypergpu outlets`
does the same for a run that has ended, or a simulated one.
"""
