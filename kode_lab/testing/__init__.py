"""For authors of stores: contracts to test a store against, and a throwaway PostgreSQL."""
