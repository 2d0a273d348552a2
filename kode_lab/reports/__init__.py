"""Concurrency reports: read, reproduced, and compared with the run claim by claim."""
