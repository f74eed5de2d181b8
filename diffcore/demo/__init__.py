"""`python -m diffcore.demo`: draw clips of moving digits from the included model, on every library there is, from one seed."""
