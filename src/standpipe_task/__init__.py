"""What a pipeline's container carries of Standpipe: standard library only, Python 3.9 and later."""
