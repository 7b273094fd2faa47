"""What `convert_maftplus_checkpoint.py` is made of: names, sizes, files, tokenizer, card; not for the Hub."""
