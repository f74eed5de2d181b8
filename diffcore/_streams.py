"""Which stream of the noise serves what: all numbers that set independent uses of one seed apart.

A stream is the last word of the counter in `diffcore._philox`. Streams of 100 and more are free for uses of one's own.
"""

SAMPLER = 0  # the kernels of a stage (cpu_kernel.c, torch_triton.py) have it as a constant
TIMES = 1
LIKELIHOOD = 2
RECONSTRUCTION = 3
KNOWN = 4
EXTEND = 5
INTERPOLATE = 6
UPSCALE = 7
PARTS = 8
KEYS = 9
DATA = 10
CHOICES = 11
BROWNIAN = 12
PROBES = 13
HISTORY = 14
TWISTED = 15
WEIGHTS = 16
TRAINING = 17
DROPOUT = 18

# Of `unet3d.data.source.generator`, which is another generator, Philox4x64: the second word of its key.
GENERATOR_EPOCH = 0
GENERATOR_CLIP = 1
GENERATOR_IMAGE = 2
GENERATOR_DIGITS = 3
GENERATOR_SPLIT = 4
GENERATOR_CONDITION = 64
