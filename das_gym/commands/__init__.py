"""Commands: words of a command line, typed settings, help, runs in folders, signals, progress and trust."""
