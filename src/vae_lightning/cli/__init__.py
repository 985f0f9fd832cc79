"""What turns a function of a configuration into a command."""
