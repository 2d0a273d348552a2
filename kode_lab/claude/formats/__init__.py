"""The wire formats: one file each, behind the seam in ``seam``."""
