"""The PostgreSQL store: sessions for as many processes and machines as share a database."""
