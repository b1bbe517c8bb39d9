"""Vendor kernels in higher precision, rounded to a shared grid, with a log where that is
ambiguous."""
