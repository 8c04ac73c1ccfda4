"""FLOOR 3, the terminal: parse, call, render. One file per command."""
