"""What devices there are and how much of their memory is free."""
