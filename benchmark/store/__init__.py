"""Where results stay: files, claims, where a number came from."""
