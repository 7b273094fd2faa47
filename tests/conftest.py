"""Its folder, with the tools that tests share, is importable from every test below."""
