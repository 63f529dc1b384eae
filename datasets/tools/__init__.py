"""From nothing to data: download, prepare, verify, look at, exchange lists."""
