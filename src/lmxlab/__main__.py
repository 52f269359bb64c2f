"""`python -m lmxlab` is the `lmxlab` command."""

from lmxlab.cli import main

if __name__ == "__main__":
    main()
