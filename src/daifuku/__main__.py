"""`python -m daifuku` is the `daifuku` command."""

from daifuku.cli.main import main

if __name__ == "__main__":
    main()
