"""Codecs: how the elements of a tensor are written as bytes. A codec is a module here and a line in `registry`."""
