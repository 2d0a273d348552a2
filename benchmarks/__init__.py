"""Every figure of speed that kode_lab claims, as ratios within one run: ``make bench``."""
