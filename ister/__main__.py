"""`python -m ister`: the command line, where its script is not on the path."""

from ister.cli import main

if __name__ == "__main__":
    main()
