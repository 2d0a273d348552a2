"""The PostgreSQL store: one file a concern; ``store`` is the door.

connection     one connection that reconnects; what each error means
schema         tables, server-side functions, migration
worker         this process in the database: its id, its sign of life
leases         which sessions are held here, who waits for them
group_commit   requests of many sessions sent as one batch
store          ``PostgresStore``
"""
