"""Several workers on one PostgreSQL, and what is done to them while clients watch."""
