"""Programs to copy from. Run them from the root of the repository: ``python -m examples.denoising.train``."""
