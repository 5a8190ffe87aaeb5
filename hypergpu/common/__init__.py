"""Tools that all services share; they import none of the other packages."""
