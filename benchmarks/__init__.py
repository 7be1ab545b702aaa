"""Time and memory at true size: SD1.5, SD2.1 and SDXL with seeded random weights. ``python -m benchmarks --help``."""
