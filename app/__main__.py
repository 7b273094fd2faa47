"""`python -m maftplus.app` is the `maftplus` command."""

from maftplus.app.cli import main

if __name__ == "__main__":
    main()
