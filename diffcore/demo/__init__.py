"""`python -m diffcore.demo`: draw clips of moving digits from the shipped model, on every library there is, from one seed."""
