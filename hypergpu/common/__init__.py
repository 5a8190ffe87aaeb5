"""What every service needs. Imports none of the other packages."""
