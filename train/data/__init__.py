"""Data sets on disk and on the Hub, as samples for training and evaluation."""
