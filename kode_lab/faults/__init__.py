"""The fault laboratory: what the judge must convict, and what it must acquit, made on purpose."""
