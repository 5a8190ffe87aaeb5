"""What the proxy is told in files: profiles, scenarios, links of addresses, options."""
