"""Which network: encoder, ASPP, classifier, initial weights."""
