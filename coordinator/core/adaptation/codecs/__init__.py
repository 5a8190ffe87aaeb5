"""Choice of the codecs of each node, by link."""
