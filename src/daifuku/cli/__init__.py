"""The `daifuku` command. A command is a file of this folder with a constant COMMAND; adding a file adds the command."""
