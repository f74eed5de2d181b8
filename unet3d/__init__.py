"""The space-time 3D U-Net: one config, one weight layout, and an implementation each for NumPy, PyTorch and JAX.

The folder lies at the top of the checkout and is installed as `diffcore.unet3d`. The models are yet to come; the name
is taken so that code can already be written against it.
"""

if __name__ != "diffcore.unet3d":
    raise ImportError(
        f"this folder is the package diffcore.unet3d and was imported as {__name__!r}; "
        "run `pip install -e .` and use `import diffcore.unet3d`"
    )
