"""The model store: a folder with a folder for each model."""
