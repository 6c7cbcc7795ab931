"""The parent process of `infersched serve`: sockets, children, signals, drain."""
