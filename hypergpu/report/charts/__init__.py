"""Charts as inline SVG: functions from plain data to markup, styled by the page's classes."""
