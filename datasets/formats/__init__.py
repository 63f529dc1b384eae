"""Layouts of data sets on disk, and the data set that is drawn."""
