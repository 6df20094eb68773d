"""`python -m kiseki`: the same as `kiseki`."""

from kiseki.cli.main import main

if __name__ == "__main__":
    main()
