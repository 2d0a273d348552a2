"""The targets that come with kode_lab: one file a framework, run by ``host`` where it is installed.

Each is written as the framework's own documentation shows a chat that remembers; nothing in it
works around what is seen. ``REQUIRES`` pins the packages, ``DECLARES`` says what is promised.
"""
