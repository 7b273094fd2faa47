"""The sub-commands of `maftplus`, a module each; `app/cli.py` lists them."""
