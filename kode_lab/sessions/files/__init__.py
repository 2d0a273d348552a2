"""The directory store: sessions as JSON files, for many processes of one machine."""
