"""For a person: the `maftplus` command and what it shows."""
