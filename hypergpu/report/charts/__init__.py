"""Charts as inline SVG: each a function from plain data to markup, styled by the page's classes alone."""
