"""What clients saw and what the system saw: operations, spans, and the files of both."""
