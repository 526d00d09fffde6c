"""The losses and advantages once more: plain Python in float64, from the formulas, for the tests to compare with.

Written from the papers' formulas and `docs/algorithms.md`, without reading `actors/losses` or `actors/advantages`, and
slow on purpose: loops over rows and tokens, one function per idea. Derivatives come from the complex step
(`complex_step.py`), which is exact to the last digits and knows nothing of autograd.
"""
