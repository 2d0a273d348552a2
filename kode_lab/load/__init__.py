"""Load tests: the parts that locustfiles import, and the command that starts Locust."""
