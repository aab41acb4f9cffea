"""Tasks: from ``submit`` to a settled future."""
