"""The command line, `kiseki …`: parse, call, print. Thin; everything it does can be done from Python too."""
