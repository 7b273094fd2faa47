"""What `conversion/convert.py` is made of: names, sizes, files, tokenizer, card; not for the Hub."""
