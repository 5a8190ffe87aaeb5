"""Ground that all services share; it imports none of the other packages."""
