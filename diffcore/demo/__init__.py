"""`python -m diffcore.demo`: fit an exact mixture to real video, and sample new clips from it on every backend there is."""
