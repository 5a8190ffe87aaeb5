"""The little that every service needs. Imports none of our packages."""
