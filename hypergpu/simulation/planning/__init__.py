"""Plan of a run before it is paid for: links from a file, and the setting that suits them."""
