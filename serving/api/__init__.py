"""The HTTP surface: routes over a loaded run, and what guards them; serving/deployments/ puts it on Ray."""
