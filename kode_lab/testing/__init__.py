"""For authors of stores: contracts to try a store against, and a throwaway PostgreSQL."""
