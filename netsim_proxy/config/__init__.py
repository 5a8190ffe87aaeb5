"""Configuration files of the proxy: profiles, scenarios, link maps, options."""
