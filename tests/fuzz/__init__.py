"""Coverage-guided fuzzing of the codec and of both HTTP/2 sessions."""
